"""How far a figure could have come out otherwise: intervals of 95 %, of shares by formula, else by bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from ditlab.chance import generator_for

Interval = list[float]  # its lower and its upper end
QUANTILE = 1.959963984540054  # of the standard normal distribution, at 97.5 %
RESAMPLES = 1000
AT_A_TIME = 2**22  # values that are drawn together


def normal_interval(value: float, replicates: Float[Tensor, " r"]) -> Interval:
    """1.96 standard deviations of bootstrap replicates about the value; replicates that have none do not count."""
    return around(value, float(replicates[replicates.isfinite()].std()))


def around(value: float, error: float) -> Interval:
    """1.96 standard errors about the value."""
    return [value - QUANTILE * error, value + QUANTILE * error]


def share_interval(hits: Float[Tensor, " n"]) -> Interval:
    """Of the mean of zeros and ones, by Wilson's score (1927): it has a width where all of them are alike, too."""
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


def mean_interval(values: Float[Tensor, " n"], seed: int, purpose: str) -> Interval:
    """Between the 2.5 % and 97.5 % quantiles of the means of 1,000 resamples of the values (Efron 1979)."""
    return percentile_interval(values, lambda drawn: drawn.mean(1), seed, purpose)


def median_interval(values: Float[Tensor, " n"], seed: int, purpose: str) -> Interval:
    """The same of the median."""
    return percentile_interval(values, lambda drawn: drawn.median(1).values, seed, purpose)


def percentile_interval(
    values: Float[Tensor, " n"], statistic: Callable[[Tensor], Tensor], seed: int, purpose: str
) -> Interval:
    """Between the 2.5 % and 97.5 % quantiles of a statistic of 1,000 resamples (R, n), row by row, of the values."""
    values = values.double()
    generator, found = generator_for(seed, "evaluation", "bootstrap", purpose), []
    rows = max(1, AT_A_TIME // len(values))
    for first in range(0, RESAMPLES, rows):
        shape = (min(rows, RESAMPLES - first), len(values))
        found.append(statistic(values[torch.randint(len(values), shape, generator=generator)]))
    ends = torch.quantile(torch.cat(found), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [float(end) for end in ends]
