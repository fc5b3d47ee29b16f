"""Filled discs on a 16×16 image, the smallest task with structure across patches; with their ground truth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.data.conditions import NO_CONDITIONS, Conditions
from ditlab.data.dataset import Batch

SIZE = 16  # pixels
RADII = (2.5, 6.5)  # pixels


class Discs(NamedTuple):
    """Images in [−1, 1]; in pixels, the centre (cx along the width, cy along the height) and radius of each disc."""

    images: Float[Tensor, "n 1 16 16"]
    cx: Float[Tensor, " n"]
    cy: Float[Tensor, " n"]
    r: Float[Tensor, " n"]


def draw_discs(cx: Float[Tensor, " n"], cy: Float[Tensor, " n"], r: Float[Tensor, " n"]) -> Float[Tensor, "n 1 16 16"]:
    """Anti-aliased discs in [0, 1]: clamp(r − distance + 0.5, 0, 1), with pixel centres at +0.5."""
    centres = torch.arange(SIZE, dtype=cx.dtype, device=cx.device) + 0.5
    dx = centres[None, None, :] - cx[:, None, None]  # (n, 1, W)
    dy = centres[None, :, None] - cy[:, None, None]  # (n, H, 1)
    return (r[:, None, None] - torch.hypot(dx, dy) + 0.5).clamp(0, 1)[:, None]


def circles(n: int, generator: torch.Generator | None = None) -> Discs:
    """n images of one disc, +1 on −1: radius uniform in [2.5, 6.5] pixels, centre uniform with the disc inside."""
    u = torch.rand(3, n, generator=generator)
    r = RADII[0] + (RADII[1] - RADII[0]) * u[0]
    cx, cy = r + (SIZE - 2 * r) * u[1:]
    return Discs(2 * draw_discs(cx, cy, r) - 1, cx, cy, r)


class Circles:
    """Fresh discs for ever."""

    shape: tuple[int, ...] = (1, SIZE, SIZE)
    conditions: Conditions = NO_CONDITIONS
    levels: int | None = 256

    def batch(self, seed: int, position: int, size: int) -> Batch:
        return Batch(circles(size, generator_for(seed, "circles", position)).images, {})

    def held_out(self, seed: int, n: int) -> Batch:
        return Batch(circles(n, generator_for(seed, "evaluation", "held out")).images, {})
