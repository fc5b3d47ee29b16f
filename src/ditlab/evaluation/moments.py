"""Mean and scatter of features in fp64, gathered a block at a time, and the Fréchet distance between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.evaluation.intervals import Interval, around

ROWS = 1024  # of features that are turned into fp64 at a time
NOTHING = 1e-12  # of the largest eigenvalue: what is below comes of rounding


@dataclass(frozen=True)
class Moments:
    """Number, mean (D,) and scatter Σ (x − mean)(x − mean)ᵀ (D, D) of rows, in fp64.

    Sums of squares are never formed about zero, so that large means cost no digits (Chan, Golub & LeVeque 1983).
    """

    count: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> Moments:
        """Those of rows; memory grows with d alone."""
        zero = torch.zeros(x.shape[1], dtype=torch.float64)
        found = cls(0.0, zero, torch.outer(zero, zero))
        for first in range(0, len(x), ROWS):
            found = found.merged(cls._of_block(x[first : first + ROWS].double()))
        return found

    @classmethod
    def _of_block(cls, rows: Tensor) -> Moments:
        mean = rows.mean(0)
        centred = rows - mean
        return cls(float(len(rows)), mean, centred.T @ centred)

    def merged(self, other: Moments) -> Moments:
        """Those of the rows of both."""
        count = self.count + other.count
        share, shift = other.count / max(count, 1.0), other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * share)
        return Moments(count, self.mean + share * shift, self.scatter + other.scatter + between)

    @cached_property
    def covariance(self) -> Tensor:
        """The unbiased estimate (D, D)."""
        return self.scatter / max(self.count - 1, 1.0)

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


def frechet_interval(x: Float[Tensor, "n d"], y: Moments) -> Frechet:
    """The distance of samples to data, and how far another draw of as many samples could move it.

    The interval is 1.96 standard errors about the distance. The error is that of its influence values: what sample i
    adds to it in first order is 2(xᵢ − μx)·(μx − μy) + (xᵢ − μx)ᵀ(I − L(Lᵀ Σx L)^−½ Lᵀ)(xᵢ − μx) with Σy = L Lᵀ, up to
    a constant (Rippl, Munk & Sturm 2016, "Limit laws of the empirical Wasserstein distance: Gaussian distributions",
    give the derivative). A bootstrap would tell too much: a resample holds fewer different samples, which moves the
    distance more, the more features there are. The interval says nothing of the bias that all distances of few samples
    share, which the floor shows. It ends at 0, below which no distance is.

    Args:
        x: features of more samples than there are features.
        y: moments of the data.
    """
    moments = Moments.of(x)
    value = frechet(moments, y)
    values, vectors = torch.linalg.eigh(y.factor.T @ moments.covariance @ y.factor)
    solid = values > values[-1].clamp(min=0) * NOTHING
    root = torch.where(solid, values, 1).pow(-0.25) * solid  # what no sample has, none can change
    half = y.factor @ vectors * root  # half halfᵀ = L(Lᵀ Σx L)^−½ Lᵀ
    shift, found = 2 * (moments.mean - y.mean), []
    for first in range(0, len(x), ROWS):
        rows = x[first : first + ROWS].double() - moments.mean
        found.append(rows @ shift + rows.square().sum(1) - (rows @ half).square().sum(1))
    low, high = around(value, float(torch.cat(found).std()) / len(x) ** 0.5)
    return Frechet(value, [max(0.0, low), high])
