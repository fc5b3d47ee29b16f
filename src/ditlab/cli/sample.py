"""``ditlab sample`` and ``eval``. torch is imported only once a verb has understood its options."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.options import DrawingOptions, EvalOptions, SampleOptions, parse
from ditlab.cli.output import at_a_glance, report, say, say_which
from ditlab.config import Config, SamplingConfig
from ditlab.config.section import Section
from ditlab.core.disk import write_atomically, write_folder
from ditlab.core.errors import InputError, printable

if TYPE_CHECKING:
    from ditlab.core.distributed import Ranks
    from ditlab.data.conditions import Conditions
    from ditlab.evaluation.evaluator import Measured
    from ditlab.runs.run import Run

AT_A_TIME = 256  # samples, about
LISTED = 20  # classes in a line
LARGEST = 1e30  # of a scalar


def sample(arguments: Sequence[str]) -> int:
    """Draw samples into a picture or an array."""
    with classes_after_help(arguments):
        options = parse(SampleOptions, arguments, "ditlab sample")
    check_out(options.out, options.dtype)
    from ditlab.machine.resolve import use_quickest

    ranks = joined("sample", options, options.device)
    run = _loaded(options.run, None, options, ranks)
    use_quickest(run.config, run.shape, min(options.n, AT_A_TIME), run.process.like().device)
    report(write_samples(run, options, ranks), options.as_json)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Measure a run's samples."""
    options = parse(EvalOptions, arguments, "ditlab eval")
    from ditlab.machine.resolve import use_quickest

    ranks = joined("eval", options, options.device)
    run = _loaded(options.run, None, options, ranks)
    use_quickest(run.config, run.shape, AT_A_TIME, run.process.like().device)
    from ditlab.evaluation.record import must_be_recordable, record

    ranks.decided(lambda: must_be_recordable(run.folder.path))
    found = measured(run, options, ranks)
    report(found.figures if options.as_json else at_a_glance(found.figures), options.as_json)
    if ranks.first:
        figures, *pictures = record(run.folder.path, found)
        if not options.as_json:
            say(f"\nLook at {' and '.join(map(str, pictures))}; all that was measured is in {figures}")
    return 0


def joined(verb: str, options: Section, device: str, patience: float = 1800.0) -> Ranks:
    """Every process of this job, if there are several, once they agree on versions and options."""
    from ditlab.core.distributed import join
    from ditlab.runs.agreement import options_of, versions

    ranks = join(device, patience, say_which)
    ranks.agree(lambda: {"the verb": verb, **versions(), **options_of(options)})
    return ranks


def _loaded(name: str, step: int | None, options: DrawingOptions, ranks: Ranks) -> Run:
    """A run to draw from, of which every process has the same weights."""
    from ditlab.runs.agreement import weights_of
    from ditlab.runs.run import load

    run = ranks.together(lambda: load(name, weights=options.weights, step=step, device=options.device))
    ranks.agree(lambda: weights_of(run.folder.checkpoints, run.step))
    return run


def _drawing(run: Run, options: DrawingOptions, ranks: Ranks) -> tuple[SamplingConfig, Run | None]:
    """How to draw, as asked for and otherwise as the run's own configuration says, and the run to guide away from."""
    own = run.config.sampling.model_dump()
    if options.guide is None and options.guide_step is not None:
        raise InputError(f"--guide-step {options.guide_step} is a checkpoint of the run that guides: add --guide RUN")
    asked = {name: value for name in own if (value := getattr(options, name)) is not None}
    settings = SamplingConfig(**own | asked)
    if settings.guidance == 1:
        refine = ("guidance_interval", "guidance_rescale", "guidance_channels")
        if given := [f"--{name.replace('_', '-')}" for name in refine if getattr(options, name) is not None]:
            raise InputError(f"{' and '.join(given)} refines guidance, which is off: add --guidance 2, for example")
    if options.guide is None:
        if not run.conditions and options.guidance not in (None, 1):
            raise InputError(
                f"{run.folder.path} was trained without conditions, so there is nothing to guide: drop --guidance, or "
                f"name a weaker run to guide away from, --guide RUN"
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


def write_samples(run: Run, options: SampleOptions, ranks: Ranks) -> dict[str, Any]:
    """Draw and write samples; return what was done."""
    import numpy as np

    from ditlab.core.device import autocast
    from ditlab.evaluation.evaluate import drawn_with
    from ditlab.runs.decode import decoder
    from ditlab.runs.pictures import as_bytes, save_each, save_picture

    out = Path(options.out) if options.out is not None else run.folder.path / "samples.png"
    each = options.out is not None and is_folder(options.out)
    settings, guide = _drawing(run, options, ranks)
    cond = conditions_of(run, options)
    labels = run.cond(options.n, cond).get("label")
    pictured = options.vae is not None or (run.latent and (each or out.suffix == ".png"))
    decode = decoder(run, options.vae) if pictured else None  # found before anything is drawn
    if (each or options.dtype == "uint8") and (len(run.shape) != 3 or (run.latent and decode is None)):
        raise InputError(f"samples of {run.folder.path} are not images: write them to a .npz file as float32")
    ranks.decided(lambda: _must_fit(options.n, run.shape))
    with autocast(options.precision, run.process.like().device):
        samples = run.draw(options.n, cond, options.seed, guide=guide, ranks=ranks, **settings.model_dump()).cpu()
    if not ranks.first:
        return {}
    samples = samples if decode is None else decode(samples)
    if not samples.isfinite().all():
        raise InputError("some pictures of these latents are not finite numbers: is the autoencoder the right one?")
    if each:
        write_folder(out, lambda path: save_each(path, samples))
    elif out.suffix == ".png":
        each_class = "label" not in cond and run.num_classes is not None and run.num_classes <= options.n
        columns = run.num_classes if each_class else None
        write_atomically(out, lambda path: save_picture(path, samples, columns))
    else:
        drawn = as_bytes(samples) if options.dtype == "uint8" else samples
        arrays: dict[str, Any] = {"samples": drawn.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        write_atomically(out, lambda path: np.savez_compressed(path, **arrays))
    shape = list(samples.shape[1:])
    done: dict[str, Any] = {"out": str(out), "n": options.n, "shape": shape, "run_step": run.step, "seed": options.seed}
    if (classes := classes_of(run.config)) and labels is not None:
        every = {"classes": classes if options.as_json else listed(classes)}
        done |= every if "label" not in cond else {"label": classes[int(labels[0])]}
    if scalars := {name: value for name, value in cond.items() if name != "label"}:
        done["cond"] = scalars
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


def measured(run: Run, options: EvalOptions, ranks: Ranks) -> Measured:
    """The figures of a run, and the samples that they are of."""
    from ditlab.evaluation.evaluate import measure

    settings, guide = _drawing(run, options, ranks)
    asked = ("seed", "features", "data", "vae", "labels", "batch_size", "nll", "nll_n")
    given = {name: getattr(options, name) for name in asked}
    return measure(run, options.n, guide=guide, ranks=ranks, notice=say, **given, **settings.model_dump())


def classes_of(config: Config) -> Sequence[str]:
    """Names of the labels, in order; none where they have no names."""
    return getattr(config.data, "classes", None) or ()


def listed(classes: Sequence[str]) -> str:
    """Classes with their numbers, in a line: ``0 cat, 1 dog``."""
    more = f" and {len(classes) - LISTED:,} more" if len(classes) > LISTED else ""
    return printable(", ".join(f"{i} {name}" for i, name in enumerate(classes[:LISTED]))) + more


def conditions_of(run: Run, options: SampleOptions) -> dict[str, str | float]:
    """The conditions asked for, by name: a class by its name or number, a scalar in its unit; others are refused."""
    from ditlab.data.conditions import Label, Scalar

    words = [f"--cond {word}".partition("=") for word in options.cond]
    words += [] if options.label is None else [("--cond label", "=", options.label)]
    found: dict[str, str | float] = {}
    for flag, equals, value in words:
        name = flag.removeprefix("--cond ")
        kind = run.conditions.get(name)
        if not equals or kind is None:
            takes = f"it takes {described(run.conditions)}" if run.conditions else "it was trained without conditions"
            raise InputError(f"{flag}{equals}{value} names no condition of {run.folder.path}: {takes}")
        if name in found:
            raise InputError(f"{flag} is given twice; all samples have one value")
        if isinstance(kind, Label):
            found[name] = value
        elif isinstance(kind, Scalar):
            found[name] = _number(flag, value, kind.unit)
        else:
            raise InputError(f"{flag} takes features rather than words: draw in Python, with run.draw(n, cond=...)")
    return found


def _number(flag: str, word: str, unit: str) -> float:
    with suppress(ValueError):
        if abs(number := float(word)) < LARGEST:  # which NaN is not
            return number
    raise InputError(f"{flag}={word}: give a number{f' of {unit}' if unit else ''} below {LARGEST:g}")


def described(conditions: Conditions) -> str:
    """What a run can be told, in a line: ``label (0 cat, 1 dog), age (years)``."""
    from ditlab.data.conditions import Label, Scalar

    notes = {}
    for name, kind in conditions.items():
        note = listed(kind.names) if isinstance(kind, Label) else kind.unit if isinstance(kind, Scalar) else "features"
        notes[name] = f" ({note})" if note else ""
    return printable(", ".join(name + note for name, note in notes.items()))


@contextmanager
def classes_after_help(arguments: Sequence[str]) -> Iterator[None]:
    """Where help is printed in the block, print the classes of the run that is named, too."""
    try:
        yield
    except SystemExit:
        if {"-h", "--help"} & set(arguments) and not arguments[0].startswith("-"):
            from ditlab.data.conditions import Scalar
            from ditlab.runs.build import build_dataset
            from ditlab.runs.folder import RunFolder

            with suppress(InputError):
                config = RunFolder.find(arguments[0]).read_config()
                if classes := classes_of(config):
                    print(f"Classes of {printable(arguments[0])}: {listed(classes)}")
                for name, kind in build_dataset(config).conditions.items():
                    if isinstance(kind, Scalar):
                        print(printable(f"{name} of {arguments[0]}: {kind.mean:g} ± {kind.std:g} {kind.unit}".rstrip()))
        raise


def check_out(out: str | None, dtype: str) -> None:
    """Refuse, with an InputError before anything is drawn, what cannot be written."""
    suffix = "" if out is None else Path(out).suffix
    if out is not None and is_folder(out):
        if Path(out).is_dir() and any(Path(out).iterdir()):
            raise InputError(f"--out {out} is not empty: name a new folder")
    elif out is not None and suffix not in (".png", ".npz"):
        raise InputError(f"--out {out} must end in .png (a picture), .npz (an array) or / (a folder of pictures)")
    if dtype == "uint8" and suffix != ".npz":
        raise InputError("--dtype uint8 is of an array: add --out FILE.npz; pictures have 8 bits in any case")


def is_folder(out: str) -> bool:
    """Whether ``--out`` names a folder, which may have to be made."""
    return out.endswith(("/", os.sep)) or Path(out).is_dir()
