"""95 % intervals, which cover the mean of a figure over fresh draws of both samples and data.

``benchmarks/intervals.py`` measures their coverage by repeated draws of both.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from scipy import special
from torch import Tensor

Interval = list[float]  # lower and upper end
QUANTILE = 1.959963984540054  # of the standard normal distribution, at 97.5 %


def around(value: float, variance: float, freedom: int) -> Interval:
    """Student's interval (1908) of a value whose variance was estimated with ``freedom`` degrees of freedom."""
    half = float(special.stdtrit(freedom, 0.975)) * variance**0.5
    return [value - half, value + half]


def share_interval(hits: Float[Tensor, " n"]) -> Interval:
    """Interval of the mean of independent zeros and ones; its width is positive even if all are equal."""
    return score_interval(float(hits.double().mean()), len(hits))


def score_interval(share: float, trials: float, quantile: float = QUANTILE) -> Interval:
    """Wilson's score interval (1927) of a share of independent trials; ``trials`` may be an effective number."""
    z = quantile**2 / trials
    middle = (share + z / 2) / (1 + z)
    half = (z * share * (1 - share) + z * z / 4) ** 0.5 / (1 + z)
    return [min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))]


def squared_interval(value: float, first: float, second: float, noise: float = 0.0) -> Interval:
    """Interval of a squared distance |μ + e|² − noise between two means with sampling error e.

    Its scatter is that of μ·e if the means are far apart, and that of |e|² if they are equal. For an expected value t
    its variance is max(second, first · (t + noise) / (value + noise) − second), and the interval contains every t that
    is at most 1.96 standard deviations from the value, like Wilson's for shares. Influence values alone would
    overestimate the scatter at distance 0 by √2, as they count |e|² twice (Efron & Stein 1981).

    Args:
        value: the squared distance.
        first: variance estimated from influence values.
        second: variance of |e|² alone.
        noise: the subtracted E|e|², or 0 if it was not subtracted and t contains it.
    """
    narrow, slope = QUANTILE * second**0.5, QUANTILE**2 * first / (value + noise) / 2 if value + noise > 0 else 0.0
    if (square := QUANTILE**2 * (first - second) + slope**2) < 0:  # the variance is at its minimum for all t
        return [value - narrow, value + narrow]
    wide = square**0.5
    return [value - max(narrow, wide - slope), value + max(narrow, wide + slope)]


def added(value: float, *intervals: Interval) -> Interval:
    """Combine the intervals of independent causes: root of the summed squares of the distances (Zou 2008)."""
    low, high = (math.hypot(*(each[end] - value for each in intervals)) for end in (0, 1))
    return [value - low, value + high]
