"""A power law with a floor, L = L∞ + a·C^−b, fitted to losses and compute (Hoffmann et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from studies.intervals import Measured, over_seeds

EXPONENTS = np.geomspace(0.02, 4.0, 300)
FEWEST = 4  # different computes for fitting three unknowns


class PowerLaw(NamedTuple):
    """``floor`` + ``scale`` · (C/``unit``)^−``exponent``; ``r2`` is the share of the variance of the losses explained.

    ``unit`` is the geometric mean of the computes, so ``scale`` is the loss above the floor there.
    """

    floor: float
    scale: float
    exponent: float
    unit: float
    r2: float

    def __call__(self, compute: float) -> float:
        """The loss at the given compute."""
        return float(self.floor + self.scale * (compute / self.unit) ** -self.exponent)


def fit_power_law(compute: Sequence[float], loss: Sequence[float]) -> PowerLaw:
    """Least squares over a grid of exponents; for each, floor and scale in closed form, neither below 0.

    Losses that do not fall are best fitted by a constant: then the scale and ``r2`` are 0.
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


def left_out_r2(compute: Sequence[float], loss: Sequence[float]) -> float:
    """How well the others predict each network: 1 − squared errors of the predictions over the variance of the losses.

    At most 1; below 0 if the mean of the losses would predict better. Equal losses give 0.

    Raises:
        ValueError: fewer than four different computes remain when one is left out.
    """
    if (different := len(set(compute))) <= FEWEST:
        raise ValueError(f"{different} different computes: to leave one out, a power law needs {FEWEST + 1} or more")
    c, losses = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    others = ~np.eye(len(c), dtype=bool)
    foretold = [fit_power_law(c[keep].tolist(), losses[keep].tolist())(c[i]) for i, keep in enumerate(others)]
    spread = float(((losses - losses.mean()) ** 2).sum())
    return 1 - float(((np.array(foretold) - losses) ** 2).sum()) / spread if spread > 0 else 0.0


def fits_over_seeds(compute: Sequence[float], losses: Sequence[Sequence[float]]) -> dict[str, Measured]:
    """Means and intervals over seeds of exponent, floor and left-out r², fitted to each seed's losses.

    Args:
        compute: of each network.
        losses: one list for each seed, in the order of ``compute``.

    Raises:
        ValueError: too few different computes.
    """
    fits = [fit_power_law(compute, each) for each in losses]
    return {
        "exponent": over_seeds([fit.exponent for fit in fits]),
        "floor": over_seeds([fit.floor for fit in fits]),
        "left-out r2": over_seeds([left_out_r2(compute, each) for each in losses]),
    }
