"""What follows ``ditlab train``: a recipe, the kinds of its parts, its data, and changes to it. Imports no torch."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ditlab.cli.options import LatentsTrainOptions, ResumeOptions, TrainOptions, parse
from ditlab.config import KINDS, Config, DDPMConfig, ImagesData, LatentsData, MLPConfig, OwnData, SamplingConfig
from ditlab.core import plugins
from ditlab.core.errors import InputError
from ditlab.core.registry import DATASETS, NETWORKS, PROCESSES, Registry
from ditlab.data.images.open import located
from ditlab.data.images.survey import survey
from ditlab.data.latents.index import full_path
from ditlab.data.latents.survey import survey_store
from ditlab.recipes import IMAGENET, RECIPES, choose_for_shape, unguided

REGISTERED: dict[str, Registry] = {"network": NETWORKS, "process": PROCESSES}


def parse_train(arguments: Sequence[str]) -> TrainOptions | ResumeOptions:
    """Read what follows ``ditlab train``: a recipe and changes to it, or a run to go on with."""
    arguments = list(arguments)
    spell_out(arguments, "compile")
    if any(word.split("=")[0] == "--resume" for word in arguments):
        return parse(ResumeOptions, arguments, "ditlab train")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(train_usage())
        sys.exit(0)
    recipe, *rest = arguments
    if recipe.startswith("-"):
        raise InputError(f"the recipe comes before {recipe}: ditlab train {'|'.join(RECIPES)} [OPTIONS]")
    if recipe not in (known := [*RECIPES, *DATASETS]):
        near = get_close_matches(recipe, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
        raise InputError(f"unknown recipe {recipe!r}; {hint}")
    default = _defaults(recipe, rest)
    options = parse(type(default), rest, f"ditlab train {recipe}", default)
    if not options.dry_run and (options.devices, options.days) != (default.devices, default.days):
        raise InputError(
            "--devices and --days belong to --dry-run; to train on several, use torchrun --nproc-per-node N"
        )
    if options.process.condition_dropout == 0 and find(rest, "--sampling.guidance") is None:
        options = options.model_copy(update={"sampling": unguided(options.sampling)})
    name = options.name if options.name is not None else recipe
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"--name {name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'")
    chosen = {"name": name, "batch_chosen": find(rest, "--batch-size") is not None, "plugins": tuple(plugins.GIVEN)}
    return options.model_copy(update=chosen)


def _defaults(recipe: str, words: list[str]) -> TrainOptions:
    """A recipe's options, for the data and the kinds that the words name; what has been understood is taken out."""
    kinds = {name: take_kind(words, name) for name in KINDS}
    if recipe == "images":
        path = _data_path(words, recipe)
        windowed = find(words, "--data.window") is not None
        scalars = (find(words, "--data.scalars") or (0, []))[1]
        column = take(list(words), "--data.image-column") or None  # which stays where it is
        seen = None if path is None else survey(path, column, windowed, scalars)
        base = RECIPES[recipe]() if seen is None else RECIPES[recipe](seen, _image_size(words))
        return _with_kinds(base, kinds).model_copy(update={"survey": seen})
    if recipe not in RECIPES:
        return _with_kinds(_on_own_data(recipe, words), kinds)
    if recipe not in ON_LATENTS:
        return _with_kinds(RECIPES[recipe](), kinds)
    preset = take_value(words, "--preset")
    if preset is not None and kinds["network"] not in (None, "dit"):
        raise InputError(f"--preset {preset} is a DiT: leave --network {kinds['network']} out")
    path = _data_path(words, recipe)
    store = None if path is None else survey_store(path)
    base = RECIPES[recipe](preset=preset) if store is None else RECIPES[recipe](store, preset)
    shown = IMAGENET if store is None and recipe == "imagenet256" else store
    values = {name: getattr(_with_kinds(base, kinds), name) for name in Config.model_fields}
    return LatentsTrainOptions(**values, survey=shown, preset=preset)


def _on_own_data(name: str, words: list[str]) -> Config:
    """A registered data set, and what is trained on samples of its shape unless the words say otherwise."""
    from ditlab.runs.build import build_dataset, own_data

    found = find(words, "--data.settings")
    given = parse(OwnData, [] if found is None else ["--settings", *found[1]], f"ditlab train {name}")
    dataset = build_dataset(Config(data=given.model_copy(update={"name": name}), network=MLPConfig()))
    chosen = choose_for_shape(dataset.shape, "label" in dataset.conditions)
    return Config(data=own_data(dataset, name), **chosen)  # its settings follow from the words


def train_usage() -> str:
    """What ``ditlab train --help`` prints."""
    about = {name: (make.__doc__ or "").strip().split("\n")[0] for name, make in {**DATASETS, **RECIPES}.items()}
    recipes = "\n".join(f"  {name:<13}{line}" for name, line in about.items())
    return (
        "usage: ditlab train RECIPE [OPTIONS]\n       ditlab train --resume RUN [--steps S]\n\n"
        f"{recipes}\n\nditlab train RECIPE --help lists what can be changed, with defaults and units."
    )


ON_LATENTS = ("latents", "imagenet256")
UNNAMED = {
    "images": "name the images: ditlab train images --data.path FOLDER --data.image-size 32",
    "latents": "name the latents: ditlab train latents --data.path STORE; ditlab latents encode makes one of images",
    "imagenet256": "name the latents of ImageNet: ditlab latents encode --data.path IMAGENET/train --data.image-size "
    "256 --vae stabilityai/sd-vae-ft-mse --out latents/imagenet256, and then ditlab train imagenet256 --data.path "
    "latents/imagenet256; --dry-run needs none",
}


def _data_path(words: list[str], recipe: str) -> str | None:
    """Take ``--data.path`` and its value out of the words; None where help, or ImageNet's cost, is asked for."""
    path = take_value(words, "--data.path")
    known = {"-h", "--help"} | ({"--dry-run"} if recipe == "imagenet256" else set())
    if path is None and not known & set(words):
        raise InputError(UNNAMED[recipe])
    return path


def _image_size(words: list[str]) -> tuple[int, ...] | None:
    """The numbers after ``--data.image-size``, which stay where they are; what are none is refused later."""
    found = find(words, "--data.image-size")
    if found is None:
        return None
    numbers = tuple(int(word) for word in found[1] if word.isdecimal())[:2]
    if not any(found[1]) or 0 in numbers:
        raise InputError(f"--data.image-size {' '.join(found[1])} is no size: give one as --data.image-size 32")
    return numbers or (32,)


def _with_kinds(base: Config, kinds: dict[str, str | None]) -> TrainOptions:
    """The recipe as default options; sections of another kind than its own take that kind's defaults."""
    values: dict[str, Any] = {name: getattr(base, name) for name in Config.model_fields}
    for name, kind in kinds.items():
        if kind is not None and kind != values[name].kind:
            values[name] = (
                KINDS[name][kind]() if kind in KINDS[name] else KINDS[name]["own"].model_validate({"name": kind})
            )
            if kind == "ddpm" and base.data.kind == "latents":
                values[name] = DDPMConfig(first_term="density")
            if kind == "flow" and base.process.kind == "ddpm":
                values["sampling"] = SamplingConfig(guidance=base.sampling.guidance)
            if name == "process" and getattr(values["network"], "learned_variance", False):  # which DDPM alone has
                changes = {"learned_variance": False, "time_offset": 0.0}
                values["network"] = values["network"].model_copy(update=changes)
            if name == "process" and (advised := values[name].sampling):
                values["sampling"] = SamplingConfig(**advised)
                if "time_scale" in type(values["network"]).model_fields:
                    values["network"] = values["network"].model_copy(update={"time_scale": values[name].time_scale})
    return TrainOptions(**values)


def divisible(options: TrainOptions, processes: int, say: Callable[[str], None]) -> TrainOptions:
    """The options with a batch that so many processes can share, the nearest to the recipe's; a chosen one is kept."""
    pieces = processes * options.accumulate
    if options.batch_chosen or options.batch_size % pieces == 0:
        return options
    size = max(1, round(options.batch_size / pieces)) * pieces
    say(f"note: batches of {size:,} rather than {options.batch_size:,}, so that {processes} processes can share them")
    return options.model_copy(update={"batch_size": size})


def carried_on(config: Config, options: ResumeOptions, run: Path, step: int | None) -> Config:
    """The configuration of a run that goes on, with a schedule that begins anew or data elsewhere, if asked for."""
    if options.rewarm:
        if step is None or step >= config.steps:
            raise InputError(f"--rewarm begins a schedule, and {run} is at step {step or 0}: add --steps S beyond it")
        config = config.model_copy(update={"rewarmed_at": step})
    if options.data_path is None:
        return config
    if not isinstance(config.data, ImagesData | LatentsData):
        raise InputError(f"{run} is trained on {config.data.kind}, which are in no folder: leave --data.path out")
    path = located(options.data_path) if config.data.kind == "images" else full_path(options.data_path)
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


def take_part(words: Sequence[str], part: str, usage: str, use: str) -> list[str] | None:
    """What follows ``part``, the one word that a verb knows; None without words or for help, where usage is printed.

    Raises:
        InputError: it is another word; ``use`` says what to type.
    """
    if not words or words[0] in ("-h", "--help"):
        print(usage)
        return None
    if words[0] != part:
        raise InputError(f"unknown word {words[0]!r}; use {use}")
    return list(words[1:])


def take_kind(words: list[str], section: str) -> str | None:
    """Take ``--network unet`` out of the words, so that the options of a U-Net can be offered for the rest.

    It is one of ditlab's kinds, or the name that a network or process of the user's own was registered under.
    """
    kind = take(words, f"--{section}")
    if kind is not None and kind not in (known := [*KINDS[section], *REGISTERED.get(section, ())]):
        raise InputError(f"unknown --{section} {kind!r}; choose one of {', '.join(known)}")
    return kind


def take_value(words: list[str], flag: str) -> str | None:
    """Take a flag and its value out of the words; the last one counts."""
    value = None
    while (found := take(words, flag)) is not None:
        if not found:
            raise InputError(f"{flag} names nothing: give it as {flag} NAME")
        value = found
    return value


def take(words: list[str], flag: str) -> str | None:
    """Take the first of a flag and its value out of the words: empty without a value, None without the flag."""
    if (found := find(words, flag)) is None:
        return None
    first, values = found
    del words[first : first + (1 if "=" in words[first] or not values else 2)]
    return values[0] if values else ""


def spell_out(words: list[str], flag: str) -> None:
    """Give a flag that stands alone its value: ``--compile`` is ``--compile=True``, ``--no-compile`` the contrary."""
    for i, word in enumerate(words):
        alone = i + 1 == len(words) or words[i + 1].startswith("-")
        if word == f"--no-{flag}":
            words[i] = f"--{flag}=False"
        elif word == f"--{flag}" and alone:
            words[i] = f"--{flag}=True"


def find(words: Sequence[str], flag: str) -> tuple[int, list[str]] | None:
    """Where a flag stands, as ``--a b c`` or ``--a=b``, and the words that follow until the next flag."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            rest = list(itertools.takewhile(lambda word: not word.startswith("--"), words[i + 1 :]))
            return i, [value] if equals else rest
    return None
