"""Distances between two sets of samples, each row one sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.rng import generator_for


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """2·E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ as a V-statistic, over all pairs (Székely & Rizzo 2013).

    It is never negative, 0 only for equal sets, and has the unit of the data.
    """
    x, y = x.double(), y.double()
    between, within_x, within_y = (_mean_distance(a, b) for a, b in ((x, y), (x, x), (y, y)))
    return 2 * between - within_x - within_y


def _mean_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Mean over all pairs, in blocks of rows, so that memory grows with m alone."""
    blocks = (x[i : i + 1000] for i in range(0, len(x), 1000))
    return sum(float(torch.cdist(rows, y).sum()) for rows in blocks) / (len(x) * len(y))


def sliced_wasserstein(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], directions: int = 128, seed: int = 0) -> float:
    """Root mean square, over random directions, of the 2-Wasserstein distance of the projections (Bonneel et al. 2015).

    Quantiles compare sets of different size. The directions depend on ``seed`` alone.
    """
    axes = torch.randn(x.shape[1], directions, generator=generator_for(seed, "directions"), dtype=torch.float64)
    axes = axes / axes.norm(dim=0)
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    left, right = (torch.quantile(z.double() @ axes, quantiles, dim=0) for z in (x, y))  # (1000, directions)
    return float((left - right).square().mean().sqrt())
