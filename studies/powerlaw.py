"""A power law with a floor, L = L∞ + a·C^−b, fitted to losses and compute (Hoffmann et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from studies.intervals import LEVEL, Measured

EXPONENTS = np.geomspace(0.02, 4.0, 300)
FEWEST = 4  # different computes that three unknowns are fitted to


class PowerLaw(NamedTuple):
    """``floor`` + ``scale`` · (C/``unit``)^−``exponent``; ``r2`` is the share of the variance of the losses explained.

    ``unit`` is the geometric mean of the computes, so that ``scale`` is what is left to gain there.
    """

    floor: float
    scale: float
    exponent: float
    unit: float
    r2: float

    def __call__(self, compute: float) -> float:
        """The loss at so much compute."""
        return float(self.floor + self.scale * (compute / self.unit) ** -self.exponent)


def fit_power_law(compute: Sequence[float], loss: Sequence[float]) -> PowerLaw:
    """Least squares over a grid of exponents; for each, floor and scale in closed form, neither below 0.

    Losses that do not fall are best fitted by a constant: then the scale, and with it ``r2``, is 0.
    """
    c, losses = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    unit = float(np.exp(np.log(c).mean()))
    z = (c / unit)[None, :] ** -EXPONENTS[:, None]  # (exponents, points)
    centred, mean = z - z.mean(1, keepdims=True), losses.mean()
    spread = np.maximum((centred**2).sum(1), 1e-300)
    scale = np.maximum((centred * (losses - mean)).sum(1) / spread, 0.0)
    floor = mean - scale * z.mean(1)
    alone = (z * losses).sum(1) / (z**2).sum(1)  # where the floor would be below 0, it is 0
    scale, floor = np.where(floor < 0, alone, scale), np.maximum(floor, 0.0)
    errors = ((floor[:, None] + scale[:, None] * z - losses) ** 2).sum(1)
    best = int(errors.argmin())
    variance = float(((losses - mean) ** 2).sum())
    r2 = 1 - float(errors[best]) / variance if variance > 0 else 0.0
    return PowerLaw(float(floor[best]), float(scale[best]), float(EXPONENTS[best]), unit, r2)


def intervals(compute: Sequence[float], loss: Sequence[float], draws: int = 1000) -> dict[str, Measured]:
    """Exponent, floor and r2 of the fit, with percentile intervals over networks drawn again with replacement.

    Draws of fewer than four different computes, which anything fits, are drawn again.
    """
    c, losses = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    generator = np.random.default_rng(0)
    fits: list[PowerLaw] = []
    if len(set(c.tolist())) < FEWEST:
        raise ValueError(f"{len(set(c.tolist()))} different computes: a power law with a floor needs {FEWEST} or more")
    while len(fits) < draws:
        chosen = generator.integers(len(c), size=len(c))
        if len(set(c[chosen].tolist())) >= FEWEST:
            fits.append(fit_power_law(c[chosen].tolist(), losses[chosen].tolist()))
    whole: Any = fit_power_law(compute, loss)
    found = {}
    for name in ("exponent", "floor", "r2"):
        low, high = np.quantile([getattr(fit, name) for fit in fits], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        value = float(getattr(whole, name))
        found[name] = Measured(
            value, min(value, float(low)), max(value, float(high)), f"bootstrap over {len(c)} networks"
        )
    return found
