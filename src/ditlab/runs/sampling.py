"""How a run draws: solver, times and guidance from its configuration, labels, and the clamp of images."""

from __future__ import annotations

from typing import Any

from ditlab.config import (
    SamplingConfig,
)
from ditlab.core.errors import InputError
from ditlab.diffusion.guidance import ClassifierFree, Guidance, Interval, Rescaled
from ditlab.diffusion.process import Process


def build_drawing(sampling: SamplingConfig, process: Process, guided: bool) -> dict[str, Any]:
    """The arguments of ``Process.sample`` that a configuration's sampling stands for; no guidance if not ``guided``.

    Raises:
        InputError: its settings do not go together, or not with the process.
    """
    grid = None if sampling.grid == "auto" else sampling.grid
    try:
        solver = process.stepper(sampling.solver)
        process.sampling_times(sampling.steps, grid, sampling.shift)
        guidance = _guidance(sampling) if guided and sampling.guidance != 1 else None
    except ValueError as error:
        raise InputError(str(error)) from None
    return {"steps": sampling.steps, "solver": solver, "guidance": guidance, "grid": grid, "shift": sampling.shift}


def _guidance(sampling: SamplingConfig) -> Guidance:
    guidance: Guidance = ClassifierFree(sampling.guidance, sampling.guidance_channels)
    if sampling.guidance_rescale:
        guidance = Rescaled(guidance, sampling.guidance_rescale)
    return guidance if sampling.guidance_interval is None else Interval(guidance, *sampling.guidance_interval)
