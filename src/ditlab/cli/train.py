"""``ditlab demo``, ``train`` and ``ema``. torch is imported only once a verb has understood its options."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.cli.options import DemoOptions, EmaOptions, EvalOptions, ResumeOptions, SampleOptions, TrainOptions, parse
from ditlab.cli.output import at_a_glance, report, say, say_which
from ditlab.cli.sample import AT_A_TIME, joined, measured, write_samples
from ditlab.cli.train_arguments import carried_on, divisible, parse_train
from ditlab.config import Config
from ditlab.core import plugins
from ditlab.core.disk import discard, remove, unfinished
from ditlab.core.errors import InputError, pasted, printable
from ditlab.data.images.survey import Survey
from ditlab.data.latents.survey import StoreSurvey
from ditlab.recipes import LARGEST_SMALL, RECIPES, SMALL_LATENT
from ditlab.runs.metrics import newest

if TYPE_CHECKING:
    from ditlab.core.distributed import Ranks
    from ditlab.runs.folder import RunFolder

RUNS = Path("runs")
NOTES = 5  # on images


def demo(arguments: Sequence[str]) -> int:
    """Train the circles recipe as runs/demo (or finish it), draw samples.png and measure."""
    options = parse(DemoOptions, arguments, "ditlab demo")
    from ditlab.core.distributed import ALONE
    from ditlab.machine.resolve import use_quickest
    from ditlab.runs.folder import RunFolder
    from ditlab.runs.run import load

    folder = RunFolder(RUNS / "demo")
    if options.fresh and folder.path.exists():
        with folder.locked():  # nobody trains it
            remove(folder.path)
    for leftover in unfinished(RUNS, "demo"):  # of a deletion that was killed
        discard(leftover)
    started = folder.config_file.exists()
    config = folder.read_config() if started else RECIPES["circles"]()
    if config.data.kind != "circles":
        raise InputError(f"{folder.path} holds another run, of {config.data.kind}: move it, or ditlab demo --fresh")
    _train(folder, config, resume=started, again="ditlab demo --fresh trains it anew", ranks=ALONE)
    run = load(folder.path)
    use_quickest(run.config, run.shape, AT_A_TIME, run.process.like().device)
    picture = folder.path / "samples.png"
    write_samples(run, SampleOptions(run=str(folder.path), out=str(picture)), ALONE)
    figures = measured(run, EvalOptions(run=str(folder.path), features="none"), ALONE).figures
    found = {"run": str(folder.path), "picture": str(picture), **figures}
    report(found if options.as_json else at_a_glance(found), options.as_json)
    say(f"\nLook at {picture}. Next:\n  ditlab lab {folder.path}\n  ditlab train digits")
    return 0


def train(arguments: Sequence[str]) -> int:
    """Train a recipe into a new run folder, or go on with a run."""
    options = parse_train(arguments)
    from ditlab.runs.folder import RunFolder

    if isinstance(options, TrainOptions) and options.dry_run:
        options = divisible(options, options.devices, say)
        _announce(options.config, options.survey)
        from ditlab.training.estimate import estimate, readable

        store = options.survey.bytes if isinstance(options.survey, StoreSurvey) else None
        costs = estimate(options.config, options.devices, options.days, store)
        report(costs if options.as_json else readable(costs), options.as_json)
        return 0
    if isinstance(options, ResumeOptions):
        folder, config = _to_resume(options)
    else:
        folder, config = RunFolder(RUNS / str(options.name)), options.config
    ranks = joined("train", options, config.device, config.stall_after)
    if isinstance(options, TrainOptions):
        options = divisible(options, ranks.world, say)
        config = options.config
        ranks.decided(lambda: _must_be_new(folder))
        _announce(options.config, options.survey)
    _train(folder, config, resume=isinstance(options, ResumeOptions), again="--steps S takes it further", ranks=ranks)
    loss = next((line["loss"] for line in newest(folder.metrics_file) if "loss" in line), None)
    report({"run": str(folder.path), "step": folder.step, "loss": loss}, options.as_json)
    shown = pasted(folder.path) + "".join(f" --plugin {pasted(name)}" for name in plugins.GIVEN)
    say(f"\nNext:\n  ditlab sample {shown}\n  ditlab eval {shown}\n  ditlab lab {shown}")
    return 0


def _to_resume(options: ResumeOptions) -> tuple[RunFolder, Config]:
    """A run and its configuration, with what may be changed in it."""
    from ditlab.core.distributed import join
    from ditlab.runs.folder import RunFolder

    try:
        folder = RunFolder.find(options.resume)
        config = folder.read_config()
    except InputError:
        join(say=say_which).together(lambda: RunFolder.find(options.resume))  # the others hear of it
        raise
    changes = {name: getattr(options, name) for name in ("steps", "workers", "parallel", "compile", "threads", "track")}
    update = {name: value for name, value in changes.items() if value is not None}
    config = config.model_copy(update=update | ({"track": None} if options.track == "off" else {}))
    return folder, carried_on(config, options, folder.path, folder.step)


def _must_be_new(folder: RunFolder) -> None:
    """Refuse a folder in which something is."""
    if folder.taken:
        raise InputError(f"{folder.path} is there already, but is no run: remove it or choose another --name")
    if folder.config_file.exists():
        raise InputError(
            f"{folder.path} is there already: go on with ditlab train --resume {folder.path}, or choose another --name"
        )


def _train(folder: RunFolder, config: Config, *, resume: bool, again: str, ranks: Ranks) -> None:
    """Train up to ``config.steps``, with progress; a finished run is left as it is."""

    def finished() -> bool:
        if not (resume and folder.step == config.steps and folder.whole_step == config.steps):
            return False
        if folder.read_config().data != config.data:  # they have moved, and are compared
            return False
        with folder.locked():
            folder.sweep()
        return True

    if ranks.decided(finished):
        say(f"{folder.path} has all its {config.steps} steps already; {again}")
        return
    from ditlab.cli.progress import Silence, watching
    from ditlab.train import fit

    begun = time.perf_counter()
    with watching() if ranks.first else nullcontext(Silence()) as watcher:
        fit(config, folder, resume=resume, watcher=watcher, ranks=ranks)
    among = f" in {ranks.world} processes" if ranks.world > 1 else ""
    say(f"trained {folder.path}{among} in {time.perf_counter() - begun:.0f} s")


def ema(arguments: Sequence[str]) -> int:
    """Make averages of any length of a run's weights."""
    options = parse(EmaOptions, arguments, "ditlab ema")
    from ditlab.training.make_ema import make_averages

    made = make_averages(options.run, options.sigma_rel, options.step, options.out)
    figures = [{"sigma_rel": m.sigma_rel, "expected_error": m.expected_error, "out": str(m.folder.path)} for m in made]
    common = {"run": options.run, "step": made[0].step, "snapshots": made[0].snapshots}
    if options.as_json:
        report({**common, "averages": figures}, True)
    else:
        rows = {f"sigma_rel {f['sigma_rel']}": {k: v for k, v in f.items() if k != "sigma_rel"} for f in figures}
        report({**common, **rows}, False)
    if not made[0].raw:
        say(f"note: step {made[0].step} has no checkpoint, so --weights raw gives the average too")
    say(f"\nNext: ditlab eval {pasted(made[0].folder.path)}")
    return 0


def _announce(config: Config, seen: Survey | StoreSurvey | None) -> None:
    """Say what was seen of a person's own data, and what was chosen for them."""
    if seen is not None:
        for line in _of_images(config, seen) if isinstance(seen, Survey) else _of_latents(config, seen):
            say(line)


def _of_images(config: Config, seen: Survey) -> Iterator[str]:
    data = config.data
    assert data.kind == "images"
    size = f"{data.image_size[0]}×{data.image_size[-1]}"
    grey = {1: "grey", 3: "colour"}.get(data.channels, f"{data.channels}-band")
    noun = "image" if seen.count == 1 else "images"
    captions = f", {seen.captions:,} with captions, which are not used yet" if seen.captions else ""
    other = f"; {seen.other:,} other {'file is' if seen.other == 1 else 'files are'} left out" if seen.other else ""
    bad = f"; {seen.rejected:,} cannot be read" if seen.rejected else ""
    yield printable(f"{seen.count:,} {grey} {noun} of {size} {_classes(data.classes)}{captions}{bad}{other}")
    for note in seen.notes[:NOTES]:
        yield printable(f"note: {note}")
    if len(seen.notes) > NOTES:
        yield f"note: ditlab data check tells {len(seen.notes) - NOTES:,} more"
    yield f"{_chosen(config, seen.count)}; ditlab train images --help tells how to choose otherwise"
    if data.image_size[0] * data.image_size[-1] > LARGEST_SMALL:
        yield "A GPU is recommended at this size; with --data.image-size 32 a CPU trains in minutes"


def _of_latents(config: Config, seen: StoreSurvey) -> Iterator[str]:
    data = config.data
    assert data.kind == "latents"
    shape = "×".join(map(str, data.shape))
    yield printable(f"{seen.count:,} latents of {shape} {_classes(data.classes)}, of the VAE {seen.vae}")
    if not seen.mirrored:
        yield "note: the store has no mirrored latents, so none are drawn"
    yield f"{_chosen(config, seen.count)}; --help tells how to choose otherwise"
    if data.shape[1] * data.shape[2] > SMALL_LATENT:
        yield "A GPU is recommended at this size; on latents of at most 16×16 a CPU trains in minutes"


def _classes(classes: tuple[str, ...] | None) -> str:
    return "without labels" if classes is None else f"in {len(classes):,} classes"


def _chosen(config: Config, count: int) -> str:
    """The network and the training, in words."""
    from ditlab.training.estimate import parameters_of

    network = config.network
    cut = f" on patches of {network.patch_size}×{network.patch_size}" if network.kind == "dit" else ""
    name = network.name if network.kind == "own" else {"dit": "DiT", "unet": "U-Net", "mlp": "MLP"}[network.kind]
    epochs = config.steps * config.batch_size / count
    return (
        f"A {name} of {parameters_of(config):,} parameters{cut}; {config.steps:,} steps of {config.batch_size:,}, "
        f"about {epochs:.1f} epochs"
    )
