"""How a run draws samples unless it is told otherwise. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from ditlab.config.section import Section
from ditlab.config.values import SOLVER_CHOICES, Count, GridName, Interval, Positive, Signed, SolverName


class SamplingConfig(Section):
    """How previews, ``sample`` and ``eval`` draw unless told otherwise."""

    prefix: ClassVar[str] = "sampling."
    steps: int = Field(25, ge=1, le=10**6, description="solver steps")
    solver: Annotated[SolverName, SOLVER_CHOICES] = Field("heun", description="of the reverse process")
    guidance: Signed = Field(1.0, description="classifier-free guidance scale; 1 is off")
    grid: GridName = Field("auto", description="times of the steps; auto is uniform for flow, respaced for ddpm")
    shift: Positive = Field(1.0, description="above 1 moves the times of a continuous grid towards the noise")
    guidance_interval: Interval | None = Field(None, description="guide between these two times; None is all")
    guidance_rescale: float = Field(0.0, ge=0, le=1, description="bring the guided x0 back to its spread; 0 is off")
    guidance_channels: Count | None = Field(
        None, description="guide the first so many channels alone, published DiTs 3; None is all"
    )
