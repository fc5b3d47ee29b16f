"""Mean and scatter of features in fp64, gathered a block at a time, and the Fréchet distance between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.chance import generator_for
from ditlab.evaluation.intervals import Interval, normal_interval

ROWS = 1024  # of features that are turned into fp64 at a time
FEW_FEATURES = 512  # up to which a distance takes milliseconds
REPLICATES = 50, 20  # of the bootstrap, for few features and for more


@dataclass(frozen=True)
class Moments:
    """Weight, mean (D,) and scatter Σ w (x − mean)(x − mean)ᵀ (D, D) of rows, in fp64.

    Sums of squares are never formed about zero, so that large means cost no digits (Chan, Golub & LeVeque 1983).
    """

    weight: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], weights: Tensor | None = None) -> Moments:
        """Those of rows, each counted once or ``weights`` (n,) times; memory grows with d alone."""
        zero = torch.zeros(x.shape[1], dtype=torch.float64)
        found = cls(0.0, zero, torch.outer(zero, zero))
        for first in range(0, len(x), ROWS):
            rows = x[first : first + ROWS].double()
            w = torch.ones(len(rows)) if weights is None else weights[first : first + ROWS]
            found = found.merged(cls._of_block(rows, w.double()))
        return found

    @classmethod
    def _of_block(cls, rows: Tensor, weights: Tensor) -> Moments:
        total = float(weights.sum())
        mean = weights @ rows / max(total, 1.0)
        centred = rows - mean
        return cls(total, mean, (centred * weights[:, None]).T @ centred)

    def merged(self, other: Moments) -> Moments:
        """Those of the rows of both."""
        weight = self.weight + other.weight
        share, shift = other.weight / max(weight, 1.0), other.mean - self.mean
        between = torch.outer(shift, shift) * (self.weight * share)
        return Moments(weight, self.mean + share * shift, self.scatter + other.scatter + between)

    @cached_property
    def covariance(self) -> Tensor:
        """The unbiased estimate (D, D)."""
        return self.scatter / max(self.weight - 1, 1.0)

    @cached_property
    def factor(self) -> Tensor:
        """L (D, D) with L Lᵀ the covariance, which may be singular."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()


def frechet(x: Moments, y: Moments) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2·(Σx Σy)^½), between Gaussians of these moments (Dowson & Landau 1982).

    With Σ = L Lᵀ the roots of the eigenvalues of Σx Σy are the singular values of Lxᵀ Ly: no root of a rounding error
    is taken, as the eigenvalues of a singular product would need, and nothing is complex.
    """
    roots = torch.linalg.svdvals(x.factor.T @ y.factor).sum()
    traces = x.covariance.trace() + y.covariance.trace()
    return float((x.mean - y.mean).square().sum() + traces - 2 * roots)


class Frechet(NamedTuple):
    """A Fréchet distance and its interval."""

    value: float
    interval: Interval
    replicates: int


def frechet_interval(x: Float[Tensor, "n d"], y: Moments, seed: int = 0) -> Frechet:
    """The distance of samples to data, and how far another draw of as many samples could move it.

    The standard error is that of a bootstrap over the samples: each replicate counts sample i a multinomial number of
    times. The replicates themselves lie too high, for they hold fewer different samples and the distance falls with
    their number; so the interval is 1.96 standard errors about the distance itself, and not the replicates' quantiles.
    It says nothing of the bias that all distances of few samples share, which the floor shows. It ends at 0, below
    which no distance is.
    """
    value = frechet(Moments.of(x), y)
    replicates = REPLICATES[x.shape[1] > FEW_FEATURES]
    generator = generator_for(seed, "evaluation", "bootstrap", "frechet")
    drawn = [frechet(Moments.of(x, counts(len(x), generator)), y) for _ in range(replicates)]
    low, high = normal_interval(value, torch.tensor(drawn, dtype=torch.float64))
    return Frechet(value, [max(0.0, low), high], replicates)


def counts(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """How often each of n samples comes when n are drawn of them with replacement."""
    return torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).double()
