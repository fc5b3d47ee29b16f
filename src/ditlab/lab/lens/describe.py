"""Everything a page needs to know about a run before it asks for arrays."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ditlab.config import Config
from ditlab.core.registry import SOLVERS
from ditlab.data.conditions import Conditions, Label, Scalar, num_classes
from ditlab.diffusion.process import Process
from ditlab.diffusion.solvers import adaptive
from ditlab.inspection.branches import modulated_blocks
from ditlab.lab.lens.decoding import why_not
from ditlab.lab.lens.lens import KINDS, MAX_STEPS, Lens
from ditlab.networks.costs import on_meta, parameter_count
from ditlab.networks.dit import DiT
from ditlab.runs.build import build_dataset, build_network, build_process
from ditlab.runs.folder import RunFolder

SECTIONS = ("flow", "patches", "attention", "matrix", "change", "gates", "denoise", "compare")


def describe(lens: Lens) -> dict[str, Any]:
    """Shapes, sizes and choices of a run, and which sections of the page apply to it."""
    run = lens.run
    patches = None
    if isinstance(lens.network, DiT):
        embed = lens.network.patch_embed
        patches = {"size": embed.patch_size, "grid": list(embed.grid), "tokens": math.prod(embed.grid)}
    layers = [
        {"layer": i, "heads": heads, "grid": list(grid), "tokens": math.prod(grid)}
        for i, (heads, grid) in enumerate(zip(lens.heads, lens.grids, strict=True))
    ]
    return _known(run.config, lens.process, run.shape, run.conditions) | {
        "has_examples": lens.scenes.has_examples,
        "step": run.step,
        "patches": patches,
        "attention": layers,
        "condition_tokens": list(lens.condition_tokens),
        "cross_tokens": list(lens.cross_tokens),
        "macs": lens.scenes.macs,
        "draws": _draws(lens),
        "latents": {"why": why_not(run.config)} if run.latent else None,
        "sections": dict.fromkeys(SECTIONS) | _missing(lens),
    }


def _draws(lens: Lens) -> int:
    """How many samples to show side by side: one for each of a few classes, or eight images; a cloud of points."""
    if len(lens.run.shape) != 3:
        return 400
    classes = lens.run.num_classes or 0
    return classes if 2 <= classes <= 12 else 8


def describe_waiting(folder: RunFolder) -> dict[str, Any]:
    """The same of a run that has no checkpoint yet: of most sections, that they wait for it."""
    config = folder.read_config()
    dataset = build_dataset(config)
    network = on_meta(lambda: build_network(config, dataset))
    waiting: str | None = "This waits for the run’s first checkpoint."
    return _known(config, build_process(config, network), dataset.shape, dataset.conditions) | {
        **dict.fromkeys(("step", "patches", "macs", "latents")),
        **{name: [] for name in ("attention", "condition_tokens", "cross_tokens")},
        "has_examples": False,
        "draws": 0,
        "sections": dict.fromkeys(SECTIONS, waiting) | {"gates": _no_gates(config, network)},
    }


def _known(config: Config, process: Process, shape: tuple[int, ...], conditions: Conditions) -> dict[str, Any]:
    """What the configuration says, which is known before anything is learned."""
    return {
        "data": config.data.kind,
        "network": config.network.kind,
        "process": config.process.kind,
        "noise_path": getattr(process.path, "name", "own"),
        "target": process.target_name,
        "shape": list(shape),
        "num_classes": num_classes(conditions),
        "classes": _class_names(conditions),
        "scalars": [
            {"name": name, "unit": kind.unit, "mean": kind.mean, "std": kind.std}
            for name, kind in conditions.items()
            if isinstance(kind, Scalar)
        ],
        "positions": getattr(config.network, "positions", None),
        "has_gates": bool(modulated_blocks(process.network)),
        "parameters": parameter_count(process.network),
        "sampling": config.sampling.model_dump(),
        "solvers": [*(name for name in SOLVERS if name != "ddim" and not adaptive(name)), *config.process.solvers],
        "max_steps": MAX_STEPS,
    }


def _class_names(conditions: Conditions) -> list[str] | None:
    """The names of the classes; None where they are numbers."""
    label = conditions.get("label")
    names = list(label.names) if isinstance(label, Label) else []
    return None if names == list(map(str, range(len(names)))) else names


def _no_gates(config: Config, network: nn.Module) -> str | None:
    if modulated_blocks(network):
        return None
    kind, conditioning = KINDS[config.network.kind], getattr(config.network, "conditioning", None)
    return f"{kind} has no adaLN-Zero gates." if conditioning is None else f"{kind} with {conditioning} has no gates."


def _missing(lens: Lens) -> dict[str, str | None]:
    """Why sections of the page do not apply, or None."""
    kind = KINDS[lens.run.config.network.kind]
    no_patches = None if isinstance(lens.network, DiT) else f"{kind} cuts nothing into patches."
    no_attention = None if lens.layers else f"{kind} has no attention."
    no_gates = _no_gates(lens.run.config, lens.network)
    if lens.run.config.data.kind == "external":
        no_gates = "This run was imported: nothing was recorded while it was trained."
    return {"patches": no_patches, "attention": no_attention, "matrix": no_attention, "gates": no_gates}
