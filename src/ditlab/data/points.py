"""Two-dimensional points whose distribution anyone can draw: five classics, each within about [−2, 2]²."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.data.conditions import NO_CONDITIONS, Conditions
from ditlab.data.dataset import Batch

Sampler = Callable[[int, torch.Generator | None], Float[Tensor, "n 2"]]

GAUSSIANS_RADIUS = 1.5
GAUSSIANS_STD = 0.1


def gaussians(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """Eight Gaussians of standard deviation 0.1, equally likely, on a ring of radius 1.5."""
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centre = GAUSSIANS_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + GAUSSIANS_STD * torch.randn(n, 2, generator=generator)


def gaussians_log_density(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """The density that ``gaussians`` draws from, in nats."""
    angle = torch.arange(8) * (math.pi / 4)
    centres = GAUSSIANS_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1).to(x)  # (8, 2)
    squares = (x[:, None] - centres).square().sum(2) / GAUSSIANS_STD**2  # (n, 8)
    return torch.logsumexp(-squares / 2, dim=1) - math.log(8 * 2 * math.pi * GAUSSIANS_STD**2)


def moons(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """Two interleaved half circles of radius 1, with noise of standard deviation 0.06."""
    angle = math.pi * torch.rand(n, generator=generator)
    lower = torch.randint(2, (n,), generator=generator).bool()
    upper_moon = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower_moon = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    x = torch.where(lower[:, None], lower_moon, upper_moon) - torch.tensor([0.5, 0.25])
    return x + 0.06 * torch.randn(n, 2, generator=generator)


def swiss_roll(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """A spiral of one and a half turns, radius 0.5 to 1.8, with noise of standard deviation 0.05."""
    turn = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    x = turn[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1) / (2.5 * math.pi)
    return x + 0.05 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """Uniform on the eight black squares, of side 1, of a 4×4 board on [−2, 2]²."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    return torch.stack([column, row], dim=1) - 2.0 + torch.rand(n, 2, generator=generator)


def checkerboard_log_density(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """The density that ``checkerboard`` draws from, in nats: 1/8 on black squares, 0 elsewhere."""
    square = x.floor()
    black = (square.abs() <= 2).all(1) & (square < 2).all(1) & (square.sum(1) % 2 == 0)
    return torch.where(black, -math.log(8.0), -math.inf)


def spirals(n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 2"]:
    """Two arms that wind once and a half around each other, radius up to 2, with noise of standard deviation 0.04."""
    turn = 3 * math.pi * torch.rand(n, generator=generator).sqrt()
    arm = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    x = arm * turn[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1) / (1.5 * math.pi)
    return x + 0.04 * torch.randn(n, 2, generator=generator)


POINTS: dict[str, Sampler] = {
    "gaussians": gaussians,
    "moons": moons,
    "swiss-roll": swiss_roll,
    "checkerboard": checkerboard,
    "spirals": spirals,
}

DENSITIES: dict[str, Callable[[Float[Tensor, "n 2"]], Float[Tensor, " n"]]] = {
    "gaussians": gaussians_log_density,
    "checkerboard": checkerboard_log_density,
}


class Points:
    """Fresh points for ever, from the distribution of that name."""

    shape: tuple[int, ...] = (2,)
    conditions: Conditions = NO_CONDITIONS
    levels: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.sampler = POINTS[name]
        self.log_density = DENSITIES.get(name)

    def batch(self, seed: int, position: int, size: int) -> Batch:
        return Batch(self.sampler(size, generator_for(seed, self.name, position)), {})

    def held_out(self, seed: int, n: int) -> Batch:
        return Batch(self.sampler(n, generator_for(seed, "evaluation", "held out")), {})
