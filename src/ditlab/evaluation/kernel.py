"""The kernel distance (KID): squared maximum mean discrepancy under a cubic polynomial kernel, without bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.chance import generator_for
from ditlab.evaluation.intervals import Interval, normal_interval

ROWS = 1024  # of a kernel matrix that are held at a time
REPLICATES = 100  # of the bootstrap
SUBSETS, SUBSET = 100, 1000  # as published: so many subsets, of so many each


def kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x·y/d + 1)³ (Bińkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """E k(x, x′) + E k(y, y′) − 2·E k(x, y) over different pairs (Gretton et al. 2012, equation 3).

    The mean over all draws is the squared discrepancy itself, so that it may be below 0, and does not depend on how
    many there are.
    """
    return float(_distances(x, y, torch.ones(1, len(x), dtype=torch.float64))[0])


class Kernel(NamedTuple):
    """A kernel distance with its interval; and mean and standard deviation over subsets, as KID is published."""

    value: float
    interval: Interval
    subset_mean: float
    subset_std: float
    subset_size: int


def kernel_interval(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], seed: int = 0) -> Kernel:
    """The distance of samples to data over all pairs, and how far another draw of as many samples could move it.

    The interval is 1.96 standard errors about it, of a bootstrap over the samples in which a pair of a sample with
    itself never counts. The subsets are 100 of 1,000 from each set, or of half the smaller set if that is less: of all
    of it, every subset would be the same and seem certain.
    """
    generator = generator_for(seed, "evaluation", "bootstrap", "kernel")
    weights = torch.stack([torch.ones(len(x)).double(), *(counts(len(x), generator) for _ in range(REPLICATES))])
    value, *replicates = _distances(x, y, weights).tolist()
    interval = normal_interval(value, torch.tensor(replicates, dtype=torch.float64))
    size = max(2, min(SUBSET, min(len(x), len(y)) // 2))
    found = torch.tensor(_of_subsets(x, y, size, seed), dtype=torch.float64)
    return Kernel(value, interval, float(found.mean()), float(found.std()), size)


def counts(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """How often each of n samples comes when n are drawn of them with replacement."""
    return torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).double()


def _of_subsets(x: Tensor, y: Tensor, size: int, seed: int) -> list[float]:
    generator = generator_for(seed, "evaluation", "subsets")
    chosen = ([torch.randperm(len(z), generator=generator)[:size] for z in (x, y)] for _ in range(SUBSETS))
    return [kernel_distance(x[a], y[b]) for a, b in chosen]


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], weights: Tensor) -> Float[Tensor, " r"]:
    """The distance with sample i counted weights[r, i] times, for each row r; a block of rows at a time."""
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    within_x = torch.zeros(len(weights), dtype=torch.float64)
    cross, within_y = torch.zeros_like(within_x), 0.0
    for first in range(0, n, ROWS):
        cut = slice(first, first + ROWS)
        own = _without_self(kernel(x[cut], x), first)
        within_x += ((own @ weights.T) * weights[:, cut].T).sum(0)
        cross += weights[:, cut] @ kernel(x[cut], y).sum(1)
    for first in range(0, m, ROWS):
        within_y += float(_without_self(kernel(y[first : first + ROWS], y), first).sum())
    total = weights.sum(1)
    pairs = total.square() - weights.square().sum(1)
    return within_x / pairs + within_y / (m * (m - 1)) - 2 * cross / (total * m)


def _without_self(block: Tensor, first: int) -> Tensor:
    """Rows of a square matrix, from the row ``first`` on, with 0 on its diagonal."""
    rows = torch.arange(len(block))
    block[rows, rows + first] = 0
    return block
