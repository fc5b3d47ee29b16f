"""Values that configurations and options of verbs share: solvers, grids, intervals of time, sizes. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import AfterValidator, Field

SOLVERS = "euler", "ddim", "heun", "ancestral", "dpm-solver++", "dpm-solver++3m", "euler-maruyama", "dopri5", "average"


def _known_solver(name: str) -> str:
    """One of these names, or one that was registered; only to look for that is torch imported."""
    if name not in SOLVERS:
        from ditlab.diffusion.solvers import SOLVERS as REGISTERED

        if name not in REGISTERED:
            known = ", ".join(dict.fromkeys((*SOLVERS, *REGISTERED)))
            raise ValueError(f"unknown solver {name!r}; choose one of {known}, or register it first")
    return name


SOLVER_CHOICES = tyro.conf.arg(metavar="{" + ",".join(SOLVERS) + "}")
SolverName = Annotated[str, AfterValidator(_known_solver)]
GridName = Literal["auto", "uniform", "quadratic", "karras", "respaced", "leading"]
Share = Annotated[float, Field(ge=0, le=1)]


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError("the first time must be below the second")
    return interval


Interval = Annotated[tuple[Share, Share], AfterValidator(_rising)]


def _height_and_width(size: tuple[int, ...]) -> tuple[int, int]:
    if len(size) not in (1, 2):
        raise ValueError("give one number for a square, or height and width")
    return size[0], size[-1]


ImageSize = Annotated[tuple[Annotated[int, Field(ge=1, le=2**14)], ...], AfterValidator(_height_and_width)]
