"""Everything a page needs to know about a run before it asks for arrays."""

from __future__ import annotations

import math
from typing import Any

from ditlab.diffusion.solvers import SOLVERS
from ditlab.inspection.branches import modulated_blocks
from ditlab.lab.lens import KINDS, MAX_STEPS, Lens
from ditlab.networks.counts import parameter_count
from ditlab.networks.dit import DiT


def describe(lens: Lens) -> dict[str, Any]:
    """Shapes, sizes and choices of a run, and which sections of the page apply to it."""
    run, config = lens.run, lens.run.config
    few_steps = config.process.kind == "meanflow"
    patches = None
    if isinstance(lens.network, DiT):
        embed = lens.network.patch_embed
        patches = {"size": embed.patch_size, "grid": list(embed.grid), "tokens": math.prod(embed.grid)}
    layers = [
        {"layer": i, "heads": heads, "grid": list(grid), "tokens": math.prod(grid)}
        for i, (heads, grid) in enumerate(zip(lens.heads, lens.grids, strict=True))
    ]
    return {
        "data": config.data.kind,
        "has_examples": lens.scenes.has_examples,
        "network": config.network.kind,
        "process": config.process.kind,
        "noise_path": getattr(config.process, "path", "linear" if few_steps else "discrete"),
        "target": lens.process.target_name,
        "shape": list(run.shape),
        "step": run.step,
        "num_classes": run.num_classes,
        "patches": patches,
        "positions": getattr(config.network, "positions", None),
        "attention": layers,
        "condition_tokens": list(lens.condition_tokens),
        "cross_tokens": list(lens.cross_tokens),
        "has_gates": bool(modulated_blocks(lens.network)),
        "parameters": parameter_count(lens.network),
        "macs": lens.scenes.macs,
        "sampling": config.sampling.model_dump(),
        "draws": _draws(lens),
        "solvers": [name for name in SOLVERS if name not in ("ddim", "dopri5")] + (["average"] if few_steps else []),
        "max_steps": MAX_STEPS,
        "sections": _sections(lens),
    }


def _draws(lens: Lens) -> int:
    """How many samples to show side by side: one for each of a few classes, or eight images; a cloud of points."""
    if len(lens.run.shape) != 3:
        return 400
    classes = lens.run.num_classes or 0
    return classes if 2 <= classes <= 12 else 8


def _no_gates(lens: Lens, kind: str) -> str:
    conditioning = getattr(lens.run.config.network, "conditioning", None)
    return f"{kind} has no adaLN-Zero gates." if conditioning is None else f"{kind} with {conditioning} has no gates."


def _sections(lens: Lens) -> dict[str, str | None]:
    """Of each section of the page, why it does not apply, or None."""
    kind = KINDS[lens.run.config.network.kind]
    no_patches = None if isinstance(lens.network, DiT) else f"{kind} cuts nothing into patches."
    no_attention = None if lens.layers else f"{kind} has no attention."
    no_gates = None if modulated_blocks(lens.network) else _no_gates(lens, kind)
    if lens.run.config.data.kind == "external":
        no_gates = "This run was imported: nothing was recorded while it was trained."
    return {
        "flow": None,
        "patches": no_patches,
        "attention": no_attention,
        "matrix": no_attention,
        "change": None,
        "gates": no_gates,
        "denoise": None,
        "compare": None,
    }
