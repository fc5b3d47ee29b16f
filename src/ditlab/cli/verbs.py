"""What each verb does. torch is imported only once a verb has understood its options.

Results go to stdout, as a table or as one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.options import (
    DemoOptions,
    DrawingOptions,
    EvalOptions,
    ResumeOptions,
    SampleOptions,
    TrainOptions,
    parse,
)
from ditlab.cli.sampling import check_out, classes_after_help, classes_of, is_folder, label_of, listed
from ditlab.cli.summary import announcement
from ditlab.cli.train_arguments import carried_on, divisible, parse_train
from ditlab.config import Config, SamplingConfig
from ditlab.config.section import Section
from ditlab.core.disk import discard, remove, unfinished, write_atomically, write_folder
from ditlab.core.errors import InputError, pasted, printable, speaks
from ditlab.data.latents.survey import StoreSurvey
from ditlab.recipes import RECIPES
from ditlab.runs.metrics import newest

if TYPE_CHECKING:
    from torch import Tensor

    from ditlab.core.distributed import Ranks
    from ditlab.evaluation.evaluator import Measured
    from ditlab.runs.folder import RunFolder
    from ditlab.runs.run import Run

RUNS = Path("runs")
AT_A_TIME = 256  # samples, about

# What the table of an evaluation shows; how the figures came about is kept in eval.json, and printed by --json.
GLANCE = (
    *("run", "picture", "valid", "overlap", "energy_distance", "sliced_wasserstein", "accuracy", "frechet"),
    *("frechet_features", "kernel", "precision", "recall", "density", "coverage", "memorisation_ratio", "copied"),
    *("nll", "nll_unit", "nll_error", "n", "solver", "steps", "guidance", "evaluations"),
)


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
    _write_samples(run, SampleOptions(run=str(folder.path), out=str(picture)), ALONE)
    figures = _measure(run, EvalOptions(run=str(folder.path), features="none"), ALONE).figures
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
        _announce(options)
        from ditlab.training.estimate import estimate, readable

        store = options.survey.bytes if isinstance(options.survey, StoreSurvey) else None
        costs = estimate(options.config, options.devices, options.days, store)
        report(costs if options.as_json else readable(costs), options.as_json)
        return 0
    if isinstance(options, ResumeOptions):
        folder, config = _to_resume(options)
    else:
        folder, config = RunFolder(RUNS / str(options.name)), options.config
    ranks = _joined("train", options, config.device, config.stall_after)
    if isinstance(options, TrainOptions):
        options = divisible(options, ranks.world, say)
        config = options.config
        ranks.decided(lambda: _must_be_new(folder))
        _announce(options)
    _train(folder, config, resume=isinstance(options, ResumeOptions), again="--steps S takes it further", ranks=ranks)
    report({"run": str(folder.path), "step": folder.step, "loss": _last_loss(folder)}, options.as_json)
    shown = pasted(folder.path)
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
        join(say=_say_which).together(
            partial(RunFolder.find, options.resume)
        )  # perhaps here alone: the others hear of it
        raise
    changes = {name: getattr(options, name) for name in ("steps", "workers", "parallel", "compile", "threads", "track")}
    update = {name: value for name, value in changes.items() if value is not None}
    config = config.model_copy(update=update | ({"track": None} if options.track == "off" else {}))
    return folder, carried_on(config, options, folder.path, folder.step)


def _joined(verb: str, options: Section, device: str, patience: float = 1800.0) -> Ranks:
    """Every process of this job, if there are several, once they agree on versions and options."""
    from ditlab.core.distributed import join
    from ditlab.runs.agreement import options_of, versions

    ranks = join(device, patience, _say_which)
    ranks.agree(lambda: {"the verb": verb, **versions(), **options_of(options)})
    return ranks


def _loaded(name: str, step: int | None, options: DrawingOptions, ranks: Ranks) -> Run:
    """A run to draw from, of which every process has the same weights."""
    from ditlab.runs.agreement import weights_of
    from ditlab.runs.run import load

    run = ranks.together(lambda: load(name, weights=options.weights, step=step, device=options.device))
    ranks.agree(lambda: weights_of(run.folder.checkpoints, run.step))
    return run


def _must_be_new(folder: RunFolder) -> None:
    """Refuse a folder in which something is."""
    if folder.taken:
        raise InputError(f"{folder.path} is there already, but is no run: remove it or choose another --name")
    if folder.config_file.exists():
        raise InputError(
            f"{folder.path} is there already: go on with ditlab train --resume {folder.path}, or choose another --name"
        )


def sample(arguments: Sequence[str]) -> int:
    """Draw samples into a picture or an array."""
    with classes_after_help(arguments):
        options = parse(SampleOptions, arguments, "ditlab sample")
    check_out(options.out, options.dtype)
    from ditlab.machine.resolve import use_quickest

    ranks = _joined("sample", options, options.device)
    run = _loaded(options.run, None, options, ranks)
    use_quickest(run.config, run.shape, min(options.n, AT_A_TIME), run.process.like().device)
    report(_write_samples(run, options, ranks), options.as_json)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Measure a run's samples."""
    options = parse(EvalOptions, arguments, "ditlab eval")
    from ditlab.machine.resolve import use_quickest

    ranks = _joined("eval", options, options.device)
    run = _loaded(options.run, None, options, ranks)
    use_quickest(run.config, run.shape, AT_A_TIME, run.process.like().device)
    from ditlab.evaluation.record import must_be_recordable, record

    ranks.decided(lambda: must_be_recordable(run.folder.path))
    measured = _measure(run, options, ranks)
    report(measured.figures if options.as_json else at_a_glance(measured.figures), options.as_json)
    if ranks.first:
        figures, *pictures = record(run.folder.path, measured)
        if not options.as_json:
            say(f"\nLook at {' and '.join(map(str, pictures))}; all that was measured is in {figures}")
    return 0


def _say_which(message: str) -> None:
    """A word from any process of several."""
    print(f"ditlab: {printable(message)}", file=sys.stderr, flush=True)


def _announce(options: TrainOptions) -> None:
    """Say what was seen of a person's own data, and what was chosen for them."""
    for line in announcement(options.config, options.survey):
        say(line)


def say(message: str) -> None:
    """A word to the person at the terminal, from the first process if there are several."""
    if speaks():
        print("\n".join(map(printable, message.split("\n"))), file=sys.stderr, flush=True)


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


def _drawing(run: Run, options: DrawingOptions, ranks: Ranks) -> tuple[SamplingConfig, Run | None]:
    """How to draw, as asked for and otherwise as the run's own configuration says, and the run to guide away from."""
    own = run.config.sampling.model_dump()
    if options.guide is None and options.guide_step is not None:
        raise InputError(f"--guide-step {options.guide_step} is a checkpoint of the run that guides: add --guide RUN")
    settings = SamplingConfig(**{name: _first(getattr(options, name), value) for name, value in own.items()})
    if settings.guidance == 1:
        refine = ("guidance_interval", "guidance_rescale", "guidance_channels")
        if given := [f"--{name.replace('_', '-')}" for name in refine if getattr(options, name) is not None]:
            raise InputError(f"{' and '.join(given)} refines guidance, which is off: add --guidance 2, for example")
    if options.guide is None:
        if run.num_classes is None and options.guidance not in (None, 1):
            raise InputError(
                f"{run.folder.path} was trained without labels, so there is nothing to guide: drop --guidance, or name "
                f"a weaker run to guide away from, --guide RUN"
            )
        if run.config.process.condition_dropout == 0 and options.guidance not in (None, 1):
            raise InputError(
                f"{run.folder.path} kept every label in training (--process.condition-dropout 0), so it never learned "
                f"what to guide away from: drop --guidance, or name a weaker run to guide away from, --guide RUN"
            )
        return settings, None
    if settings.guidance == 1:
        raise InputError(f"--guide {options.guide} needs to know how strongly to guide: add --guidance 2, for example")
    guide = _loaded(options.guide, options.guide_step, options, ranks)
    if guide.folder.path.resolve() == run.folder.path.resolve() and guide.step == run.step:
        raise InputError(
            f"--guide {options.guide} is the run itself, which changes nothing: name a weaker run, or an earlier "
            f"checkpoint with --guide-step"
        )
    return settings, guide


def _first(asked: Any, own: Any) -> Any:
    return own if asked is None else asked


def _write_samples(run: Run, options: SampleOptions, ranks: Ranks) -> dict[str, Any]:
    """Draw and write samples; return what was done."""
    import numpy as np

    from ditlab.core.device import autocast
    from ditlab.evaluation.evaluate import drawn_with
    from ditlab.runs.pictures import as_bytes, save_each, save_picture
    from ditlab.runs.sampling import build_drawing

    out = Path(options.out) if options.out is not None else run.folder.path / "samples.png"
    each = options.out is not None and is_folder(options.out)
    settings, guide = _drawing(run, options, ranks)
    label = None if options.label is None else label_of(run, options.label)
    labels = run.labels(options.n, label)
    decode = _decoder(run, options.vae, each or out.suffix == ".png")
    if (each or options.dtype == "uint8") and (len(run.shape) != 3 or (run.latent and decode is None)):
        raise InputError(f"samples of {run.folder.path} are not images: write them to a .npz file as float32")
    drawing = build_drawing(settings, run.process, guided=run.num_classes is not None or guide is not None)
    ranks.decided(lambda: _must_fit(options.n, run.shape))
    with autocast(options.precision, run.process.like().device):
        samples = run.sample(options.n, labels, seed=options.seed, guide=guide, ranks=ranks, **drawing).cpu()
    if not ranks.first:
        return {}
    samples = samples if decode is None else decode(samples)
    if not samples.isfinite().all():
        raise InputError("some pictures of these latents are not finite numbers: is the autoencoder the right one?")
    if each:
        write_folder(out, lambda path: save_each(path, samples))
    elif out.suffix == ".png":
        each_class = label is None and run.num_classes is not None and run.num_classes <= options.n
        columns = run.num_classes if each_class else None
        write_atomically(out, lambda path: save_picture(path, samples, columns))
    else:
        drawn = as_bytes(samples) if options.dtype == "uint8" else samples
        arrays: dict[str, Any] = {"samples": drawn.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        write_atomically(out, lambda path: np.savez_compressed(path, **arrays))
    shape = list(samples.shape[1:])
    done = {"out": str(out), "n": options.n, "shape": shape, "run_step": run.step, "seed": options.seed}
    if classes := classes_of(run.config):
        every = {"classes": classes if options.as_json else listed(classes)}
        done |= every if label is None else {"label": classes[label]}
    return done | drawn_with(run, settings, guide) | {"precision": options.precision}


def _must_fit(n: int, shape: tuple[int, ...]) -> None:
    """Refuse more samples than this machine can hold, before hours are spent on them."""
    from ditlab.core.malloc import physical

    needed = 2 * 4 * n * math.prod(shape)  # bytes, as pieces and together
    if needed > physical():
        raise InputError(
            f"--n {n} samples take {needed / 1e9:,.0f} GB of memory, and this machine has {physical() / 1e9:,.0f}: "
            f"draw fewer, and others with another --seed"
        )


def _decoder(run: Run, vae: str | None, pictured: bool) -> Callable[[Tensor], Tensor] | None:
    """What makes images of latents, where a picture or an autoencoder was asked for; found before anything is drawn."""
    if vae is None and not (run.latent and pictured):
        return None
    from ditlab.runs.decode import decoder

    return decoder(run, vae)


def _measure(run: Run, options: EvalOptions, ranks: Ranks) -> Measured:
    from ditlab.evaluation.evaluate import measure

    settings, guide = _drawing(run, options, ranks)
    asked = ("seed", "features", "data", "vae", "labels", "batch_size", "nll", "nll_n")
    given = {name: getattr(options, name) for name in asked}
    return measure(run, options.n, guide=guide, ranks=ranks, notice=say, **given, **settings.model_dump())


def _last_loss(folder: RunFolder) -> float | None:
    return next((line["loss"] for line in newest(folder.metrics_file) if "loss" in line), None)


def report(figures: dict[str, Any], as_json: bool) -> None:
    """Print results on stdout: one JSON object, or a table; of several processes the first one does."""
    if not speaks():
        return
    if as_json:
        print(json.dumps(figures, allow_nan=False))
        return
    rows = table(figures)
    width = max(len(key) for key in rows)
    for key, text in rows.items():
        print(f"{key:<{width}}  {text}")


def at_a_glance(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that are read first, in the order of reading, with intervals and floors."""
    beside = ("", "_interval", "_floor", "_real")
    return {f"{key}{end}": figures[f"{key}{end}"] for key in GLANCE for end in beside if f"{key}{end}" in figures}


def table(figures: dict[str, Any]) -> dict[str, str]:
    """Every figure in words, with its interval and what real data score, where they are given, in its row."""
    rows, said = {}, set()
    for key, value in figures.items():
        if key in said:
            continue
        rows[key] = _readable(value)
        if (interval := figures.get(f"{key}_interval")) is not None:
            rows[key] += f"  [{_readable(interval[0])}, {_readable(interval[1])}]"
        for suffix in ("_floor", "_real"):
            if f"{key}{suffix}" in figures:
                rows[key] += f"  (real data: {_readable(figures[key + suffix])})"
        said |= {f"{key}{suffix}" for suffix in ("_interval", "_floor", "_real")}
    return rows


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{key}: {_readable(entry)}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))
