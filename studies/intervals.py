"""Figures with intervals of 95 %, and verdicts: they follow from the figures, and are nowhere written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

Verdict = Literal["confirmed", "contradicted", "not shown here"]
CONFIRMED: Verdict = "confirmed"
CONTRADICTED: Verdict = "contradicted"
NOT_SHOWN: Verdict = "not shown here"
LEVEL = 0.95


class Measured(NamedTuple):
    """A figure and where it lies with 95 % confidence; ``interval`` says what the interval was made of."""

    value: float
    low: float
    high: float
    interval: str

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.value:.3g}{spread}"


def over_seeds(values: Sequence[float]) -> Measured:
    """The mean over runs that differ in their seed alone, and Student's interval of it; there are at least two."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return Measured(mean, mean - half, mean + half, f"t over {len(values)} seeds")


def differences_over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Measured:
    """The mean of ours − theirs, seed by seed."""
    return over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])


def bootstrapped(
    values: Sequence[float], statistic: Callable[..., Any] = np.median, of: str = "rounds", draws: int = 2000
) -> Measured:
    """A statistic of repeated measurements, and the percentile interval of it; two runs give the same digits.

    Args:
        values: at least two.
        statistic: takes ``axis``, as ``np.median`` does.
        of: what the values are, in the plural.
        draws: resamples.
    """
    array = np.asarray(values, dtype=float)
    chosen = np.random.default_rng(0).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(statistic(array[chosen], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measured(float(statistic(array, axis=0)), float(low), float(high), f"bootstrap over {len(array)} {of}")


def exact(value: float) -> Measured:
    """A count, or an extreme over everything that was looked at: it has no interval."""
    return Measured(float(value), float(value), float(value), "exact")


def above(figure: Measured, bound: float) -> Verdict:
    """Confirmed if the whole interval lies above the bound, contradicted if the whole of it lies below."""
    return CONFIRMED if figure.low > bound else CONTRADICTED if figure.high < bound else NOT_SHOWN


def below(figure: Measured, bound: float) -> Verdict:
    """Confirmed if the whole interval lies below the bound, contradicted if the whole of it lies above."""
    return CONFIRMED if figure.high < bound else CONTRADICTED if figure.low > bound else NOT_SHOWN


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a claim that needs all of several: one contradicted contradicts it, all confirmed confirm it."""
    seen = set(verdicts)
    return CONTRADICTED if CONTRADICTED in seen else CONFIRMED if seen == {CONFIRMED} else NOT_SHOWN
