"""Weights of the training loss by time.

The error of a prediction y = p·x0 + q·eps at a fixed x_t is also one of x0, eps and the velocity: with D = a·q − s·p
(``targets``), Δx0 = −(s/D)·Δy and Δ(dx_t/dt) = ((a·s′ − s·a′)/D)·Δy. So the squared error of one is that of another
times a weight that depends on t alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ditlab.diffusion.paths import Coefficients

Weight = Callable[[Coefficients, Tensor], Tensor]  # (a, s, a′, s′ at times (B,), D (B,)) -> (B,)
GAMMA = 5.0  # of min-SNR-γ, as the paper recommends


def in_velocity(c: Coefficients, d: Tensor) -> Tensor:
    """Takes the squared error of the target to that of the velocity dx_t/dt; infinite where D = 0."""
    return ((c.a * c.ds - c.s * c.da) / d) ** 2


def min_snr(c: Coefficients, d: Tensor) -> Tensor:
    """min(SNR, γ) times the squared error of x0, with SNR = a²/s² and γ = 5 (Hang et al. 2023, eq. 6).

    For eps that is min(SNR, γ)/SNR, and for v min(SNR, γ)/(SNR + 1), of the squared error of the target.
    """
    return torch.minimum(c.a**2, GAMMA * c.s**2) / d**2


WEIGHTS: dict[str, Weight] = {"min-snr": min_snr}
