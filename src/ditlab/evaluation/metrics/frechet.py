"""Mean and scatter of features in fp64, computed block by block, and the Fréchet distance between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.evaluation.metrics.intervals import Interval, squared_interval

ROWS = 1024  # rows converted to fp64 at a time
TENTH = 10
NOTHING = 1e-12  # share of the largest eigenvalue below which others are rounding errors


@dataclass(frozen=True)
class Moments:
    """Number, mean (D,) and scatter Σ (x − mean)(x − mean)ᵀ (D, D) of rows, in fp64.

    Squares are always centred, so that large means cost no precision (Chan, Golub & LeVeque 1983).
    """

    count: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> Moments:
        """The moments of rows; memory grows with d alone."""
        zero = torch.zeros(x.shape[1], dtype=torch.float64)
        found = cls(0.0, zero, torch.outer(zero, zero))
        for first in range(0, len(x), ROWS):
            rows = x[first : first + ROWS].double()
            centred = rows - rows.mean(0)
            found = found.merged(cls(float(len(rows)), rows.mean(0), centred.T @ centred))
        return found

    def merged(self, other: Moments) -> Moments:
        """The moments of the rows of both."""
        count = self.count + other.count
        share, shift = other.count / max(count, 1.0), other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * share)
        return Moments(count, self.mean + share * shift, self.scatter + other.scatter + between)

    @cached_property
    def covariance(self) -> Tensor:
        """The unbiased covariance (D, D)."""
        return self.scatter / max(self.count - 1, 1.0)

    @cached_property
    def factor(self) -> Tensor:
        """L (D, D) with L Lᵀ the covariance, which may be singular."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()


def frechet(x: Moments, y: Moments) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2·(Σx Σy)^½), between Gaussians of these moments (Dowson & Landau 1982).

    With Σ = L Lᵀ, the roots of the eigenvalues of Σx Σy are the singular values of Lxᵀ Ly. This avoids complex numbers,
    and roots of rounding errors if a covariance is singular.
    """
    roots = torch.linalg.svdvals(x.factor.T @ y.factor).sum()
    traces = x.covariance.trace() + y.covariance.trace()
    return float((x.mean - y.mean).square().sum() + traces - 2 * roots)


class Frechet(NamedTuple):
    """A Fréchet distance and its interval."""

    value: float
    interval: Interval


def frechet_interval(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], seed: int = 0) -> Frechet:
    """The distance of samples to data, and an interval of its mean over draws of as many of both.

    The interval is ``squared_interval``. The first-order variance is that of influence values: sample i contributes
    2(xᵢ − μx)·(μx − μy) + (xᵢ − μx)ᵀ(I − L(Lᵀ Σx L)^−½ Lᵀ)(xᵢ − μx) with Σy = L Lᵀ, up to a constant, and a datum
    likewise (derivative: Rippl, Munk & Sturm 2016, "Limit laws of the empirical Wasserstein distance: Gaussian
    distributions"). The second-order variance is estimated from the change of influence values when different tenths of
    both are left out. The interval includes the bias of small sets, which the floor shows.

    Args:
        x: features of samples, more rows than features.
        y: features of data, likewise.
        seed: decides the tenths.
    """
    generator = generator_for(seed, "evaluation", "tenths")
    x, y = (z[torch.randperm(len(z), generator=generator)] for z in (x, y))
    moments = Moments.of(x), Moments.of(y)
    whole, *without = (_slopes(*moments), *(_slopes(*(Moments.of(_left(z, i)) for z in (x, y))) for i in (0, 1)))
    first = second = 0.0
    for side, z in enumerate((x, y)):
        out = len(z) // TENTH
        first += float(_influences(z, whole[side]).var()) / len(z)
        if out:
            one, other = (_influences(z[2 * out :], each[side]) for each in without)
            # the difference of means without different shares q has 2q/(1 − q)² times the variance of the mean
            second += float((one - other).var()) * (1 - out / len(z)) ** 2 / (4 * out)
    value = frechet(*moments)
    low, high = squared_interval(value, first, min(second, first / 2))
    return Frechet(value, [max(0.0, low), high])


def _left(z: Float[Tensor, "n d"], i: int) -> Float[Tensor, "k d"]:
    """All rows except the first tenth (i = 0) or the second (i = 1)."""
    out = len(z) // TENTH
    return torch.cat([z[: i * out], z[(i + 1) * out :]])


class _Slope(NamedTuple):
    """A quadratic form, 2·(z − mean)·shift + |z − mean|² − |(z − mean)·half|²."""

    mean: Tensor
    shift: Tensor
    half: Tensor


def _slopes(x: Moments, y: Moments) -> tuple[_Slope, _Slope]:
    """The first-order contributions of a sample and of a datum to the distance.

    With Lxᵀ Ly = U S Vᵀ, Ly(Lyᵀ Σx Ly)^−½ Lyᵀ is Ly V S⁻¹ Vᵀ Lyᵀ, and the other one Lx U S⁻¹ Uᵀ Lxᵀ.
    """
    u, roots, v = torch.linalg.svd(x.factor.T @ y.factor)
    solid = roots > roots[0] * NOTHING**0.5  # directions without variance cannot contribute
    root = torch.where(solid, roots, 1).rsqrt() * solid
    shift = x.mean - y.mean
    return _Slope(x.mean, shift, y.factor @ v.T * root), _Slope(y.mean, -shift, x.factor @ u * root)


def _influences(z: Float[Tensor, "n d"], slope: _Slope) -> Float[Tensor, " n"]:
    found = []
    for first in range(0, len(z), ROWS):
        rows = z[first : first + ROWS].double() - slope.mean
        found.append(2 * rows @ slope.shift + rows.square().sum(1) - (rows @ slope.half).square().sum(1))
    return torch.cat(found)
