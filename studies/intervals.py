"""Figures with 95 % intervals, and verdicts, which always follow from the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

Verdict = Literal["confirmed", "contradicted", "not shown here"]
CONFIRMED: Verdict = "confirmed"
CONTRADICTED: Verdict = "contradicted"
NOT_SHOWN: Verdict = "not shown here"
LEVEL = 0.95
EXACT = "exact"


class Measured(NamedTuple):
    """A figure and its 95 % interval; ``interval`` says how it was made.

    If a claim needs several figures, ``together`` is the wider interval that holds with 95 % for all at once.
    Without an interval both ends are the value: it is exact, or all values behind it were equal.
    """

    value: float
    low: float
    high: float
    interval: str
    together: tuple[float, float] | None = None

    @property
    def decides(self) -> bool:
        """Whether it is exact or has an interval: equal values for a few seeds do not make it certain."""
        return self.low < self.high or self.interval == EXACT

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.value:.3g}{spread}"


def over_seeds(values: Sequence[float], comparisons: int = 1, share: bool = False, of: str = "seeds") -> Measured:
    """The mean over at least two runs that differ only in their seed, with Student's interval.

    If all values are equal, they say nothing about the variation of others, so there is no interval.

    Args:
        values: one per run.
        comparisons: how many such figures a claim needs at once (``every``); ``together`` is then an interval of
            1 − 0.05 / comparisons (Bonferroni).
        share: whether the value is a share, whose interval stays in [0, 1].
        of: what the values are, in the plural.
    """
    mean, error = float(np.mean(values)), float(stats.sem(values))

    def interval(outside: float) -> tuple[float, float]:
        half = error * float(stats.t.ppf(1 - outside / 2, len(values) - 1))
        low, high = mean - half, mean + half
        return (max(low, 0.0), min(high, 1.0)) if share else (low, high)

    if len(set(values)) == 1:
        return Measured(mean, mean, mean, f"none, {len(values)} {of} are equal")
    made_of = f"t over {len(values)} {of}"
    if comparisons == 1:
        return Measured(mean, *interval(1 - LEVEL), made_of)
    outside = (1 - LEVEL) / comparisons
    made_of += f"; together at {1 - outside:.2%}, one of {comparisons} comparisons"
    return Measured(mean, *interval(1 - LEVEL), made_of, interval(outside))


def differences_over_seeds(ours: Sequence[float], theirs: Sequence[float], comparisons: int = 1) -> Measured:
    """The mean of ours − theirs, seed by seed; ``comparisons`` as in ``over_seeds``."""
    return over_seeds([a - b for a, b in zip(ours, theirs, strict=True)], comparisons)


def curve_over_seeds(curves: Sequence[Sequence[float] | np.ndarray], share: bool = False) -> dict[str, list[float]]:
    """``over_seeds`` at each point of curves of the same length: lists of values and ends of intervals, for a plot."""
    points = [over_seeds(values, share=share) for values in zip(*curves, strict=True)]
    return {each: [getattr(point, each) for point in points] for each in ("value", "low", "high")}


def counted(count: int, of: int) -> Measured:
    """The share of successes in independent trials, with the interval of Clopper and Pearson (1934)."""
    interval = stats.binomtest(count, of).proportion_ci(LEVEL, "exact")
    return Measured(count / of, float(interval.low), float(interval.high), f"Clopper-Pearson, {count} of {of}")


def exact(value: float) -> Measured:
    """A count, or an extreme over everything measured: it has no interval."""
    return Measured(float(value), float(value), float(value), EXACT)


def above(figure: Measured, bound: float) -> Verdict:
    """Confirmed if the whole interval lies above the bound, contradicted if the whole of ``together`` lies below.

    Neither without an interval.
    """
    if not figure.decides:
        return NOT_SHOWN
    _, most = figure.together or (figure.low, figure.high)
    return CONFIRMED if figure.low > bound else CONTRADICTED if most < bound else NOT_SHOWN


def below(figure: Measured, bound: float) -> Verdict:
    """Confirmed if the whole interval lies below the bound, contradicted if the whole of ``together`` lies above.

    Neither without an interval.
    """
    if not figure.decides:
        return NOT_SHOWN
    least, _ = figure.together or (figure.low, figure.high)
    return CONFIRMED if figure.high < bound else CONTRADICTED if least > bound else NOT_SHOWN


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim with several parts: contradicted if one part is, confirmed if all are.

    With many parts, one is contradicted by chance more often than in 5 % of cases, unless the figures are made for as
    many ``comparisons``; that all are confirmed by chance is no more likely than that one is (Berger 1982).
    """
    seen = set(verdicts)
    return CONTRADICTED if CONTRADICTED in seen else CONFIRMED if seen == {CONFIRMED} else NOT_SHOWN
