"""Nearest neighbours: precision and recall, density and coverage.

Distances are Euclidean, between features in fp64, computed in blocks of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.rng import generator_for

HELD = 2**23  # distances in memory at a time
PART, FREEDOM = 1000, 20  # rows of a part of a large set, and degrees of freedom of a variance
NEAR, WIDE = 3, 5  # neighbours that set the radius: for precision and recall, and for density and coverage


class Manifolds(NamedTuple):
    """The contributions of each sample (n,) or datum (m,) to the figures, which are their means."""

    precision: Float[Tensor, " n"]
    recall: Float[Tensor, " m"]
    density: Float[Tensor, " n"]
    coverage: Float[Tensor, " m"]


def manifolds(samples: Float[Tensor, "n d"], data: Float[Tensor, "m d"]) -> Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of each datum reaches its third nearest other datum. Precision is the share of samples in any ball, and
    recall the share of data in the ball of any sample. With balls to the fifth nearest, density is the number of balls
    that contain a sample, over 5, and coverage the share of balls that contain a sample.

    Args:
        samples: features of samples, at least 6.
        data: features of about as many data.
    """
    samples, data = samples.double(), data.double()
    near, wide = neighbour_distances(data, (NEAR, WIDE)).unbind(1)
    (reach,) = neighbour_distances(samples, (NEAR,)).unbind(1)
    precision, density = [], []
    nearest = torch.full((len(data),), torch.inf, dtype=torch.float64)
    recalled = torch.zeros(len(data), dtype=torch.bool)
    step = _rows(data)
    for first in range(0, len(samples), step):
        distances = torch.cdist(samples[first : first + step], data)
        precision.append((distances <= near).any(1))
        density.append((distances <= wide).sum(1).double() / WIDE)
        nearest = torch.minimum(nearest, distances.min(0).values)
        recalled |= (distances <= reach[first : first + step, None]).any(0)
    covered = nearest <= wide
    return Manifolds(torch.cat(precision).double(), recalled.double(), torch.cat(density), covered.double())


class Spread(NamedTuple):
    """Variances of precision, recall, density and coverage, and their degrees of freedom."""

    variances: Float[Tensor, " 4"]
    freedom: int


def spread(samples: Float[Tensor, "n d"], data: Float[Tensor, "m d"], seed: int = 0) -> Spread:
    """Variances of the figures of ``manifolds`` over draws of samples and data.

    Both sets are split at random into equally many parts. The variance of the figures over parts, divided by their
    number, is the estimate, as parts are independent and variances fall as 1/n. The bootstrap fails here, as a repeated
    point is its own nearest neighbour (Abadie & Imbens 2008), and the jackknife counts interactions of points several
    times (Efron & Stein 1981). Splits are repeated until there are 20 degrees of freedom.

    Args:
        samples: features of samples, at least 12.
        data: features of data, at least 12.
        seed: decides the splits.
    """
    generator, found = generator_for(seed, "evaluation", "parts"), []
    count = min(len(samples), len(data))
    parts = max(2, count // PART)
    rounds = -(-FREEDOM // (parts - 1))
    for _ in range(rounds):
        cuts = (torch.tensor_split(z[torch.randperm(len(z), generator=generator)], parts) for z in (samples, data))
        figures = [[float(each.mean()) for each in manifolds(*part)] for part in zip(*cuts, strict=True)]
        found.append(torch.tensor(figures, dtype=torch.float64).var(0) / parts)
    return Spread(torch.stack(found).mean(0), rounds * (parts - 1))


def neighbour_distances(x: Float[Tensor, "n d"], k: tuple[int, ...]) -> Float[Tensor, "n ks"]:
    """The distance of each row to its k-th nearest other row, for each k."""
    rows = torch.arange(len(x))
    return nearest(x, x, max(k), rows, rows).distances[:, [one - 1 for one in k]]


class Nearest(NamedTuple):
    """The k nearest rows of each query, nearest first: distances and numbers (n, k)."""

    distances: Float[Tensor, "n k"]
    numbers: Int[Tensor, "n k"]


def nearest(
    queries: Float[Tensor, "n d"],
    bank: Float[Tensor, "m d"],
    k: int = 1,
    own: Int[Tensor, " n"] | None = None,
    names: Int[Tensor, " m"] | None = None,
) -> Nearest:
    """The k nearest rows of a bank.

    Args:
        queries: features to find neighbours of.
        bank: features to search.
        k: number of neighbours, at most the number of rows.
        own: name of each query, which is not compared with rows of the same name.
        names: name of each row of the bank.
    """
    queries, bank = queries.double(), bank.double()
    found, step = [], _rows(bank)
    for first in range(0, len(queries), step):
        distances = torch.cdist(queries[first : first + step], bank)
        if own is not None and names is not None:
            distances[own[first : first + step, None] == names] = torch.inf
        found.append(distances.topk(min(k, len(bank)), dim=1, largest=False))
    return Nearest(torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))


def _rows(others: Tensor) -> int:
    """How many rows to compare with all others at a time."""
    return max(1, HELD // len(others))
