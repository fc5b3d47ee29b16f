"""Guidance: how a strong denoiser (with the condition) and a weak one (without) combine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ditlab.diffusion.targets import Estimate


@runtime_checkable
class Guidance(Protocol):
    """Combines two estimates at time t. Both are linear in the prediction, so the target does not matter."""

    def __call__(self, strong: Estimate, weak: Estimate, t: Tensor) -> Estimate: ...


@dataclass(frozen=True)
class ClassifierFree:
    """weak + scale · (strong − weak), on all channels (Ho & Salimans 2022).

    Args:
        scale: 0 is the weak denoiser, 1 the strong one, more exaggerates the condition.
    """

    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance must be a finite number, not {self.scale}")

    def __call__(self, strong: Estimate, weak: Estimate, t: Tensor) -> Estimate:
        return Estimate(
            x0=torch.lerp(weak.x0, strong.x0, self.scale),
            eps=torch.lerp(weak.eps, strong.eps, self.scale),
        )


def as_guidance(guidance: float | Guidance | None) -> Guidance | None:
    """A number is classifier-free guidance of that scale; None and 1 mean none is needed."""
    if guidance is None or guidance == 1:
        return None
    if isinstance(guidance, int | float):
        return ClassifierFree(float(guidance))
    return guidance
