"""Values that configurations and options of verbs share: solvers, grids, intervals of time, sizes. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import AfterValidator, Field

from ditlab.core.registry import PROCESS_SOLVERS, SOLVERS


def _known_solver(name: str) -> str:
    return name if name in PROCESS_SOLVERS else SOLVERS.check(name)


SOLVER_CHOICES = tyro.conf.arg(metavar="{" + ",".join((*SOLVERS, *PROCESS_SOLVERS)) + "}")
SolverName = Annotated[str, AfterValidator(_known_solver)]
GridName = Literal["auto", "uniform", "quadratic", "karras", "respaced", "leading"]
Share = Annotated[float, Field(ge=0, le=1)]

WIDTHS = 0.01, 0.28  # the least and the largest relative width of an average


def _distinct(widths: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(widths)) < len(widths):
        raise ValueError("each width once")
    return widths


Width = Annotated[float, Field(ge=WIDTHS[0], le=WIDTHS[1])]
Widths = Annotated[tuple[Width, ...], Field(max_length=32), AfterValidator(_distinct)]


def _without_null(path: str) -> str:
    if "\0" in path:
        raise ValueError("no path holds a null character")
    return path


Place = Annotated[str, Field(min_length=1), AfterValidator(_without_null)]  # a path, or a name on the Hub

# Every number of a configuration is bounded: whoever reads a stranger's must neither wait nor run out of memory.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer
Side = Annotated[int, Field(ge=1, le=2**14)]  # of an image, in pixels
Shape = tuple[Side, Side, Side]  # channels, height, width
Signed = Annotated[float, Field(ge=-1e9, le=1e9)]
Positive = Annotated[float, Field(gt=0, le=1e9)]


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError("the first time must be below the second")
    return interval


Interval = Annotated[tuple[Share, Share], AfterValidator(_rising)]


def _low_and_high(window: tuple[float, float] | Literal["auto"] | None) -> tuple[float, float] | Literal["auto"] | None:
    if isinstance(window, tuple) and not window[0] < window[1]:
        raise ValueError("the first must be below the second")
    return window


Window = Annotated[tuple[Signed, Signed] | Literal["auto"] | None, AfterValidator(_low_and_high)]
Settings = Annotated[dict[str, bool | int | float | str], tyro.conf.arg(metavar="NAME VALUE [NAME VALUE ...]")]
Repeats = Annotated[dict[str, Annotated[int, Field(ge=1, le=10**6)]], tyro.conf.arg(metavar="CLASS N [CLASS N ...]")]


def _height_and_width(size: tuple[int, ...]) -> tuple[int, int]:
    if len(size) not in (1, 2):
        raise ValueError("give one number for a square, or height and width")
    return size[0], size[-1]


ImageSize = Annotated[tuple[Side, ...], AfterValidator(_height_and_width)]
