"""The kernel distance (KID): squared maximum mean discrepancy under a cubic polynomial kernel, without bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.evaluation.metrics.intervals import Interval, squared_interval

ROWS = 1024  # rows of a kernel matrix in memory at a time
SUBSETS, SUBSET = 100, 1000  # number and size of the subsets, as published


def kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x·y/d + 1)³ (Bińkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """E k(x, x′) + E k(y, y′) − 2·E k(x, y) over different pairs (Gretton et al. 2012, equation 3).

    This estimate of the squared discrepancy is unbiased for any number of rows, and may be below 0.
    """
    x, y = x.double(), y.double()
    own, others = ((_sum(z, z) - float(_alone(z).sum())) / (len(z) * (len(z) - 1)) for z in (x, y))
    return own + others - 2 * _sum(x, y) / (len(x) * len(y))


class Kernel(NamedTuple):
    """A kernel distance with its interval, and mean and standard deviation over subsets, as in the publication."""

    value: float
    interval: Interval
    subset_mean: float
    subset_std: float
    subset_size: int


def kernel_interval(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], seed: int = 0) -> Kernel:
    """The distance of samples to data over all pairs, and its ``squared_interval``.

    The variances are those of the ANOVA of a U-statistic (Hoeffding 1948): of influence values, and of pairs minus
    their means over either partner. There are 100 subsets of 1,000 rows of each set, or of half the smaller set if that
    is less, as subsets of the whole set would all be equal.
    """
    size = max(2, min(SUBSET, min(len(x), len(y)) // 2))
    found = torch.tensor(_of_subsets(x, y, size, seed), dtype=torch.float64)
    x, y = x.double(), y.double()
    own, others, between = _pairs(x), _pairs(y), _pairs(x, y)
    value = own.mean + others.mean - 2 * between.mean
    influences = (2 * (own.rows - between.rows), 2 * (others.rows - between.columns))
    first = sum(float(each.var()) / len(each) for each in influences)
    second = sum(weight * each.square / each.pairs for weight, each in ((2, own), (2, others), (4, between)))
    noise = sum((float(_alone(z).mean()) - each.mean) / len(z) for z, each in ((x, own), (y, others)))
    interval = squared_interval(value, first, max(0.0, second), noise)
    return Kernel(value, interval, float(found.mean()), float(found.std()), size)


def _of_subsets(x: Tensor, y: Tensor, size: int, seed: int) -> list[float]:
    generator = generator_for(seed, "evaluation", "subsets")
    chosen = ([torch.randperm(len(z), generator=generator)[:size] for z in (x, y)] for _ in range(SUBSETS))
    return [kernel_distance(x[a], y[b]) for a, b in chosen]


def _sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    return sum(float(kernel(x[first : first + ROWS], y).sum()) for first in range(0, len(x), ROWS))


class _Pairs(NamedTuple):
    """Kernel values of pairs: means by row, by column, in total, and of the squared residuals."""

    rows: Tensor
    columns: Tensor
    mean: float
    square: float
    pairs: int


def _pairs(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"] | None = None) -> _Pairs:
    """All pairs of a row of x and a row of y, or of different rows of x, in blocks of rows."""
    others, selves = (x, 1) if y is None else (y, 0)
    n, m = len(x), len(others)
    sums, columns, squares = [], torch.zeros(m, dtype=torch.float64), 0.0
    for first in range(0, n, ROWS):
        block = kernel(x[first : first + ROWS], others)
        if selves:
            block.diagonal(first).zero_()
        sums.append(block.sum(1))
        columns += block.sum(0)
        squares += float(block.square().sum())
    rows, columns, pairs = torch.cat(sums) / (m - selves), columns / (n - selves), n * (m - selves)
    mean = float(rows.mean())
    square = squares / pairs - float(rows.square().mean()) - float(columns.square().mean()) + mean**2
    return _Pairs(rows, columns, mean, square, pairs)


def _alone(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The kernel of each row with itself."""
    return (x.square().sum(1) / x.shape[1] + 1) ** 3
