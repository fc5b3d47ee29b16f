"""The kernel distance (KID): squared maximum mean discrepancy under a cubic polynomial kernel, without bias."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.evaluation.metrics.intervals import Interval, squared_interval

ROWS = 1024  # of a kernel matrix that are held at a time
SUBSETS, SUBSET = 100, 1000  # as published: so many subsets, of so many each


def kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x·y/d + 1)³ (Bińkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """E k(x, x′) + E k(y, y′) − 2·E k(x, y) over different pairs (Gretton et al. 2012, equation 3).

    The mean over all draws is the squared discrepancy itself, so that it may be below 0, and does not depend on how
    many there are.
    """
    x, y = x.double(), y.double()
    own, others = ((_sum(z, z) - float(_alone(z).sum())) / (len(z) * (len(z) - 1)) for z in (x, y))
    return own + others - 2 * _sum(x, y) / (len(x) * len(y))


class Kernel(NamedTuple):
    """A kernel distance with its interval; and mean and standard deviation over subsets, as KID is published."""

    value: float
    interval: Interval
    subset_mean: float
    subset_std: float
    subset_size: int


def kernel_interval(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], seed: int = 0) -> Kernel:
    """The distance of samples to data over all pairs, and its interval, which is one of a squared distance.

    The variances come of the ANOVA of a U-statistic (Hoeffding 1948): that of influence values, and of pairs, of which
    the means over either partner are taken off. The subsets are 100 of 1,000 from each set, or of half the smaller set
    if that is less: of all of it, every subset would be the same and seem certain.
    """
    size = max(2, min(SUBSET, min(len(x), len(y)) // 2))
    found = torch.tensor(_of_subsets(x, y, size, seed), dtype=torch.float64)
    x, y = x.double(), y.double()
    own, others, between = _within(x), _within(y), _between(x, y)
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
    """Kernel values of pairs: means by row and by column, over all, and of squares less what rows and columns tell."""

    rows: Tensor
    columns: Tensor
    mean: float
    square: float
    pairs: int


def _between(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> _Pairs:
    """Of all pairs of a row of x and one of y, a block of rows at a time."""
    blocks = (kernel(x[first : first + ROWS], y) for first in range(0, len(x), ROWS))
    return _pairs(blocks, len(x), len(y), 0)


def _within(x: Float[Tensor, "n d"]) -> _Pairs:
    """Of all pairs of different rows."""
    blocks = (_without_self(kernel(x[first : first + ROWS], x), first) for first in range(0, len(x), ROWS))
    return _pairs(blocks, len(x), len(x), 1)


def _pairs(blocks: Iterable[Tensor], n: int, m: int, selves: int) -> _Pairs:
    sums, columns, squares = [], torch.zeros(m, dtype=torch.float64), 0.0
    for block in blocks:
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


def _without_self(block: Tensor, first: int) -> Tensor:
    """Rows of a square matrix, from the row ``first`` on, with 0 on its diagonal."""
    rows = torch.arange(len(block))
    block[rows, rows + first] = 0
    return block
