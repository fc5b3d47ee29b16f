"""What nearest neighbours tell: precision and recall, density and coverage, and whether samples are copies.

Distances are Euclidean, between features in fp64, a block of rows at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.rng import generator_for

HELD = 2**23  # distances that are held at a time
PART, FREEDOM = 1000, 20  # rows of a part where there are many, and degrees of freedom of a variance
NEAR, WIDE = 3, 5  # neighbours that a ball reaches to: of precision and recall, and of density and coverage


class Manifolds(NamedTuple):
    """What each sample (n,) or each datum (m,) adds to a figure, which is its mean."""

    precision: Float[Tensor, " n"]
    recall: Float[Tensor, " m"]
    density: Float[Tensor, " n"]
    coverage: Float[Tensor, " m"]


def manifolds(samples: Float[Tensor, "n d"], data: Float[Tensor, "m d"]) -> Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A ball around each datum reaches to its third nearest other datum. Precision is the share of samples in any ball;
    recall is the share of data in a ball of a sample. With balls to the fifth nearest, density is the number of balls
    a sample lies in, over 5, and coverage the share of balls that hold a sample.

    Args:
        samples, data: features; meant to be about as many of each, and at least 6.
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
    """Variances of precision, recall, density and coverage, estimated with so many degrees of freedom."""

    variances: Float[Tensor, " 4"]
    freedom: int


def spread(samples: Float[Tensor, "n d"], data: Float[Tensor, "m d"], seed: int = 0) -> Spread:
    """How far the figures of ``manifolds`` scatter over draws of samples and data.

    Both are cut at random into as many parts, of a part each the figures are found, and their variance is divided by
    the number of parts: it falls as 1/n, and parts have nothing in common. Neither holds of points drawn with
    replacement, for a point is its own nearest neighbour then (Abadie & Imbens 2008), or of leaving out one at a time,
    which counts what points do together as often as there are points to it (Efron & Stein 1981). Two parts, or such of
    1,000, are cut again until there are 20 degrees of freedom.

    Args:
        samples, data: features, at least 12 of each.
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
    found, step = [], _rows(x)
    for first in range(0, len(x), step):
        distances = torch.cdist(x[first : first + step], x)
        rows = torch.arange(len(distances))
        distances[rows, rows + first] = torch.inf  # not with itself, of which a distance need not come out as 0
        found.append(distances.topk(max(k), dim=1, largest=False).values[:, [one - 1 for one in k]])
    return torch.cat(found)


class Nearest(NamedTuple):
    """The k nearest of a bank for each query, the nearest first: distances and numbers (n, k)."""

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
        queries, bank: features.
        k: how many, at most as many as there are.
        own, names: a query is not compared with rows whose name is its own.
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
    """How many rows are compared with all the others at a time."""
    return max(1, HELD // len(others))
