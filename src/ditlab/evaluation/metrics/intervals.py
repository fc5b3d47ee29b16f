"""Intervals of 95 %: each covers what the figure is on average over fresh draws of samples and of data alike.

``benchmarks/intervals.py`` draws both again and again, and counts how often they do.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from scipy import special
from torch import Tensor

Interval = list[float]  # its lower and its upper end
QUANTILE = 1.959963984540054  # of the standard normal distribution, at 97.5 %


def around(value: float, variance: float, freedom: int) -> Interval:
    """Student's interval (1908) of a value whose variance was estimated with so many degrees of freedom."""
    half = float(special.stdtrit(freedom, 0.975)) * variance**0.5
    return [value - half, value + half]


def share_interval(hits: Float[Tensor, " n"]) -> Interval:
    """Of the mean of independent zeros and ones: it has a width where all of them are alike, too."""
    return score_interval(float(hits.double().mean()), len(hits))


def score_interval(share: float, trials: float, quantile: float = QUANTILE) -> Interval:
    """Wilson's score interval (1927) of a share of so many independent trials, or of as good as so many."""
    z = quantile**2 / trials
    middle = (share + z / 2) / (1 + z)
    half = (z * share * (1 - share) + z * z / 4) ** 0.5 / (1 + z)
    return [min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))]


def squared_interval(value: float, first: float, second: float, noise: float = 0.0) -> Interval:
    """Of a squared distance |μ + e|² − noise of two means, whose scatter depends on how far they are apart.

    Far apart it scatters as μ·e does, and where the distance is 0, as |e|². Where t is expected its variance is
    max(second, first · (t + noise) / (value + noise) − second), and the interval holds each t from which the value is
    1.96 standard deviations away at most, as Wilson's does for shares. Influence values alone would tell √2 times the
    scatter where the distance is 0, for they are of μ + e and count |e|² twice (Efron & Stein 1981).

    Args:
        value: the squared distance.
        first: the variance that its influence values tell.
        second: that of |e|² alone.
        noise: what was taken off, E|e|²; 0 where it was not, and t contains it.
    """
    narrow, slope = QUANTILE * second**0.5, QUANTILE**2 * first / (value + noise) / 2 if value + noise > 0 else 0.0
    if (square := QUANTILE**2 * (first - second) + slope**2) < 0:  # no t has a variance that is above the least
        return [value - narrow, value + narrow]
    wide = square**0.5
    return [value - max(narrow, wide - slope), value + max(narrow, wide + slope)]


def added(value: float, *intervals: Interval) -> Interval:
    """Of a figure that each of several causes moves alone: distances to their ends, squared and added (Zou 2008)."""
    low, high = (math.hypot(*(each[end] - value for each in intervals)) for end in (0, 1))
    return [value - low, value + high]
