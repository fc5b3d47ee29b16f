"""Is it a circle? Compares a 16×16 image with the disc of the same area and centroid."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.data.circles import draw_discs

VALID_OVERLAP = 0.95


def disc_parameters(images: Float[Tensor, "n 1 H W"]) -> Float[Tensor, "n 3"]:
    """Centroid and radius (cx, cy, r), in pixels, of the bright area of images in [−1, 1]; r = √(area/π)."""
    mass = ((images + 1) / 2).clamp(0, 1)[:, 0]  # (n, H, W)
    area = mass.sum((1, 2))
    height, width = mass.shape[1:]
    columns = torch.arange(width, dtype=mass.dtype) + 0.5
    rows = torch.arange(height, dtype=mass.dtype) + 0.5
    divisor = area.clamp(min=1e-6)
    cx = (mass.sum(1) * columns).sum(1) / divisor
    cy = (mass.sum(2) * rows).sum(1) / divisor
    return torch.stack([cx, cy, (area / math.pi).sqrt()], dim=1)


def disc_overlap(images: Float[Tensor, "n 1 H W"]) -> Float[Tensor, " n"]:
    """Σmin/Σmax between an image, mapped to [0, 1] and clamped, and the disc of its own area and centroid."""
    mass = ((images + 1) / 2).clamp(0, 1)
    disc = draw_discs(*disc_parameters(images).unbind(1))
    both = torch.minimum(mass, disc).flatten(1).sum(1)
    either = torch.maximum(mass, disc).flatten(1).sum(1)
    return both / either.clamp(min=1e-6)
