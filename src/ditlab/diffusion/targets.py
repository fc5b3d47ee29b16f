"""What a network predicts, and how (x0, eps) follow from it: one 2×2 solve for every target.

With x_t = a·x0 + s·eps, each target is linear, y = p·x0 + q·eps. With D = a·q − s·p,

    x0 = (q·x_t − s·y) / D,        eps = (a·y − p·x_t) / D.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ditlab.diffusion.paths import Coefficients, Path, match, on_host

Target = Callable[[Coefficients], tuple[Tensor, Tensor]]


class Estimate(NamedTuple):
    """What a denoiser says about x_t: the clean data and the noise, each shaped like x_t.

    ``variance``, where a DDPM's network learned it, is the fraction f of Nichol & Dhariwal 2021, eq. 15: the noise of
    a step has log variance f·log β + (1 − f)·log β̃. It is not clamped to [0, 1].
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None


TARGETS: dict[str, Target] = {
    "x0": lambda c: (torch.ones_like(c.a), torch.zeros_like(c.a)),
    "eps": lambda c: (torch.zeros_like(c.a), torch.ones_like(c.a)),
    "v": lambda c: (-c.s, c.a),  # Salimans & Ho 2022, appendix D
    "velocity": lambda c: (c.da, c.ds),  # dx_t/dt
}


def find_target(name: str, path: Path) -> Target:
    """The target of that name; ``ValueError`` if it is unknown, or the path's velocity and infinite at t = 0."""
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; choose one of {', '.join(TARGETS)}")
    if name == "velocity" and not path.finite_velocity:
        raise ValueError("the velocity of this path is infinite at t = 0; choose the target 'v', 'eps' or 'x0'")
    return TARGETS[name]


def determinant(target: Target, c: Coefficients) -> Tensor:
    """D = a·q − s·p: how well the target tells x0 and eps apart. Zero for x0 at the data and for eps at pure noise."""
    p, q = target(c)
    return c.a * q - c.s * p


def compose(target: Target, c: Coefficients, x0: Tensor, eps: Tensor) -> Tensor:
    """y = p·x0 + q·eps, what the network should say."""
    p, q = target(c)
    return match(p, x0) * x0 + match(q, x0) * eps


def resolve(target: Target, c: Coefficients, x_t: Tensor, y: Tensor) -> Estimate:
    """(x0, eps) from x_t and the prediction y.

    Where D = 0 the prediction is all there is: it is returned as the one it stands for, and the other one is 0.
    """
    (p, q), d = target(c), determinant(target, c)
    known = d != 0
    d = torch.where(known, d, torch.ones_like(d))
    x0 = match(q / d, y) * x_t - match(c.s / d, y) * y
    eps = match(c.a / d, y) * y - match(p / d, y) * x_t
    if on_host(known):  # one time for all: the choice is made here, and a GPU need not be told
        return Estimate(x0, eps) if known else Estimate(match(p, y) * y, match(q, y) * y)
    here = match(known, y).bool()
    return Estimate(torch.where(here, x0, match(p, y) * y), torch.where(here, eps, match(q, y) * y))
