"""Guidance: how a strong denoiser (with the condition) and a weak one combine.

ClassifierFree(4.0)
Interval(Rescaled(ClassifierFree(4.0), 0.7), low=0.2, high=0.8)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.diffusion.paths import Path, match
from ditlab.diffusion.solvers import Denoiser
from ditlab.diffusion.targets import Estimate

Pair = Callable[[Tensor, Tensor], tuple[Estimate, Estimate]]


class Passes:
    """What the strong and the weak denoiser say of x_t at time t; each runs only when it is first asked for.

    Args:
        x, t: x_t (B, ...) and its time, () or (B,).
        path: the path that both denoisers share.
        strong: the strong denoiser alone.
        both: the strong and the weak one, in one forward where they are one network.
    """

    def __init__(self, x: Tensor, t: Tensor, path: Path, strong: Denoiser, both: Pair) -> None:
        self.x, self.t, self.path = x, t, path
        self._strong, self._both = strong, both

    @cached_property
    def both(self) -> tuple[Estimate, Estimate]:
        """(strong, weak)."""
        return self._both(self.x, self.t)

    @cached_property
    def strong(self) -> Estimate:
        """The strong estimate: that of ``both`` where they ran, otherwise a pass of its own."""
        return self.both[0] if "both" in self.__dict__ else self._strong(self.x, self.t)


Guidance = Callable[[Passes], Estimate]
"""Makes one estimate of two. Estimates are linear in the prediction, so the target does not matter."""


@dataclass(frozen=True)
class ClassifierFree:
    """weak + scale · (strong − weak) (Ho & Salimans 2022); with a weaker network, autoguidance (Karras et al. 2024).

    A learned variance is the strong pass's.

    Args:
        scale: 0 is the weak denoiser, 1 the strong one, more exaggerates what tells them apart.
        channels: guide the first so many channels alone, and leave the others as the strong pass has them. The
            published DiT samples with 3 of its 4; None is all.
    """

    scale: float
    channels: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance must be a finite number, not {self.scale}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance channels must be at least 1, not {self.channels}")

    def __call__(self, passes: Passes) -> Estimate:
        strong, weak = passes.both
        return strong._replace(x0=self._mix(strong.x0, weak.x0), eps=self._mix(strong.eps, weak.eps))

    def _mix(self, strong: Tensor, weak: Tensor) -> Tensor:
        guided = torch.lerp(weak, strong, self.scale)
        if self.channels is None:
            return guided
        if self.channels > guided.shape[1]:
            raise InputError(f"guidance on the first {self.channels} channels: there are only {guided.shape[1]}")
        return torch.cat([guided[:, : self.channels], strong[:, self.channels :]], dim=1)


@dataclass(frozen=True)
class Interval:
    """Guidance at times low ≤ t ≤ high, and outside the strong pass alone (Kynkäänniemi et al. 2024).

    Args:
        guidance: what to do inside.
        low, high: times in [0, 1].
    """

    guidance: float | Guidance
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"a guidance interval needs 0 <= low < high <= 1, not {self.low} and {self.high}")

    def __call__(self, passes: Passes) -> Estimate:
        guidance = as_guidance(self.guidance)
        inside = (passes.t >= self.low) & (passes.t <= self.high)
        if guidance is None or not bool(inside.any()):
            return passes.strong
        guided = guidance(passes)
        if bool(inside.all()):  # then a GPU need not be told where
            return guided
        strong, here = passes.strong, match(inside, passes.x).bool()
        return strong._replace(
            x0=torch.where(here, guided.x0, strong.x0), eps=torch.where(here, guided.eps, strong.eps)
        )


@dataclass(frozen=True)
class Rescaled:
    """Bring the guided x0 back towards the spread of the strong one (Lin et al. 2023, section 3.4).

    They rescale the network's output, which is another thing for each target. Here it is x0, and eps follows from x_t,
    so that the pair stays one of x_t: x0′ = x0·(φ·std(strong x0)/std(x0) + 1 − φ), eps′ = (x_t − a·x0′)/s, with one
    standard deviation per sample.

    Args:
        guidance: what to rescale.
        factor: φ; 0 changes nothing, 1 gives the strong x0's standard deviation.
    """

    guidance: float | Guidance
    factor: float

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ValueError(f"a rescaling factor is between 0 and 1, not {self.factor}")

    def __call__(self, passes: Passes) -> Estimate:
        guidance = as_guidance(self.guidance)
        if guidance is None:
            return passes.strong
        guided, strong = guidance(passes), passes.strong
        wanted, there = (estimate.x0.flatten(1).std(1) for estimate in (strong, guided))
        ratio = torch.where(there > 0, wanted / there, torch.ones_like(there))
        x0 = guided.x0 * match(self.factor * ratio + 1 - self.factor, guided.x0)
        c = passes.path(passes.t)
        moved = match(torch.where(c.s > 0, c.a / c.s, torch.zeros_like(c.s)), x0)
        return guided._replace(x0=x0, eps=guided.eps + moved * (guided.x0 - x0))


def as_guidance(guidance: float | Guidance | None) -> Guidance | None:
    """A number is classifier-free guidance of that scale; None and 1 mean none is needed."""
    if guidance is None or guidance == 1:
        return None
    if isinstance(guidance, int | float):
        return ClassifierFree(float(guidance))
    return guidance


def must_be_learned(condition_dropout: float) -> None:
    """Raise ``InputError`` unless conditions were dropped in training: guidance needs samples without them."""
    if condition_dropout == 0:
        raise InputError(
            "guidance compares with samples without a label, which were never trained (condition_dropout is 0): sample "
            "without guidance, or give a weaker run or process as guide"
        )
