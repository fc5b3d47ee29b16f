"""Paths from data to noise: x_t = a(t)·x0 + s(t)·eps, with t = 0 at the data and t = 1 at the noise."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from ditlab.core.device import widest_float


class Coefficients(NamedTuple):
    """A path at some times: a, s and their derivatives in t, each shaped like t."""

    a: Tensor
    s: Tensor
    da: Tensor
    ds: Tensor


class Slope(NamedTuple):
    """A path's own clock: u = x_t / scale moves by du/dclock = p·x0 + q·eps. A trapezoid on it gives Heun's method."""

    scale: Tensor
    clock: Tensor
    p: Tensor
    q: Tensor


@runtime_checkable
class Path(Protocol):
    """a and s as functions of a float time in [0, 1]."""

    finite_velocity: bool  # is dx_t/dt finite on all of [0, 1]?

    @property
    def first(self) -> float:
        """The least time above the data that a network is trained at: 0, or the first published step."""
        ...

    def __call__(self, t: Tensor) -> Coefficients: ...

    def slope(self, t: Tensor) -> Slope: ...

    def time_at(self, angle: Tensor) -> Tensor:
        """The time t at which atan2(s, a) is ``angle``, from 0 at the data to π/2 at pure noise."""
        ...


def same_path(one: Path, other: Path) -> bool:
    """Do two paths mix data and noise alike at all times (looked at in 64 of them)?"""
    t = torch.linspace(0, 1, 64, dtype=torch.float64)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(one(t)[:2], other(t)[:2], strict=True))


def match(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient () or (B,) so that it broadcasts over the trailing dimensions of x (B, ...)."""
    if coefficient.dim() == 0:
        return coefficient.to(x.dtype)
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def exact(x: Tensor) -> Tensor:
    """In fp32 at least, as states and times are, whatever the network computes in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def on_host(value: Tensor) -> bool:
    """Whether it is one number that can be looked at without waiting for a device, or for ``torch.func``."""
    return value.dim() == 0 and value.device.type == "cpu" and peek_interpreter_stack() is None


def times_of(t: Tensor, x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """The time () or (B,) of each sample of x, on its device and in its type.

    A number of the host goes into a sum as it is: a copy of it to a GPU would be waited for.
    """
    return x.new_zeros(len(x)) + t if on_host(t) else t.to(x).expand(len(x))


class LinearPath:
    """a = 1 − t, s = t: the straight line of flow matching (Lipman et al. 2023; Liu et al. 2023)."""

    name = "linear"
    finite_velocity = True
    first = 0.0

    def __call__(self, t: Tensor) -> Coefficients:
        return Coefficients(a=1 - t, s=t, da=-torch.ones_like(t), ds=torch.ones_like(t))

    def slope(self, t: Tensor) -> Slope:
        """x itself moves by eps − x0 in t."""
        one = torch.ones_like(t)
        return Slope(scale=one, clock=t, p=-one, q=one)

    def time_at(self, angle: Tensor) -> Tensor:
        return angle.sin() / (angle.sin() + angle.cos())


def _angle_slope(c: Coefficients) -> Slope:
    """On a variance-preserving path x turns: dx/dθ = cos θ·eps − sin θ·x0 with θ = atan2(s, a)."""
    scale = torch.hypot(c.a, c.s)
    return Slope(scale=scale, clock=torch.atan2(c.s, c.a), p=-c.s / scale, q=c.a / scale)


class CosinePath:
    """a = cos(πt/2), s = sin(πt/2): the continuous variance-preserving path (Albergo & Vanden-Eijnden 2023)."""

    name = "cosine"
    finite_velocity = True
    first = 0.0

    def __call__(self, t: Tensor) -> Coefficients:
        angle = t * (math.pi / 2)
        a, s = angle.cos(), angle.sin()
        return Coefficients(a=a, s=s, da=-s * (math.pi / 2), ds=a * (math.pi / 2))

    def slope(self, t: Tensor) -> Slope:
        return _angle_slope(self(t))

    def time_at(self, angle: Tensor) -> Tensor:
        return angle / (math.pi / 2)


class DiscreteVP:
    """DDPM's variance-preserving path: a = √ᾱ, s = √(1 − ᾱ), from a table of betas (Ho et al. 2020, eq. 4).

    The published index k = 0 … steps − 1 is t = (k + 1)/steps. ᾱ(0) = 1 and log ᾱ is linear between the nodes, so a
    float t is always defined. ds/dt is infinite at t = 0.

    Args:
        betas: the variances β_k, each in (0, 1), shape (steps,).
    """

    name = "discrete"
    finite_velocity = False

    def __init__(self, betas: Float[Tensor, " steps"]) -> None:
        self.steps = len(betas)
        self.first = 1 / self.steps
        log_alpha_bar = torch.log1p(-betas.double()).cumsum(0)
        self.log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar])  # (steps + 1,)
        self._rows = torch.stack([self.log_alpha_bar[:-1], self.log_alpha_bar.diff()], 1)  # (steps, 2)
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def table(self, device: torch.device) -> Float[Tensor, " nodes"]:
        """log ᾱ at the nodes t = 0, 1/steps … 1, as exact as the device can hold it."""
        return self._on(device)[0]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``table``, and what a time needs of it in one row: log ᾱ at the node before it and its rise to the next.

        They are copied to an accelerator once.
        """
        if device.type == "cpu":
            return self.log_alpha_bar, self._rows
        if device not in self._copies:
            kind = widest_float(device)
            self._copies[device] = self.log_alpha_bar.to(device, kind), self._rows.to(device, kind)
        return self._copies[device]

    def __call__(self, t: Tensor) -> Coefficients:
        rows = self._on(t.device)[1]
        position = t.to(rows).clamp(0, 1) * self.steps
        left = position.floor().clamp(max=self.steps - 1).long()
        before, rise = rows[left].unbind(-1)
        log_alpha_bar = before + (position - left) * rise
        a = torch.exp(log_alpha_bar / 2)
        s = torch.sqrt(-torch.expm1(log_alpha_bar))
        rate = rise * self.steps / 2  # d(log a)/dt
        c = Coefficients(a=a, s=s, da=rate * a, ds=-rate * a * a / s)
        return Coefficients(*(value.to(t.dtype) for value in c))

    def slope(self, t: Tensor) -> Slope:
        return _angle_slope(self(t))

    def time_at(self, angle: Tensor) -> Tensor:
        table = self.table(angle.device)
        log_alpha_bar = torch.log1p(-angle.to(table).sin().square()).clamp(min=float(table[-1]), max=0)
        right = torch.searchsorted(-table, -log_alpha_bar).clamp(1, self.steps)
        position = right - 1 + (log_alpha_bar - table[right - 1]) / (table[right] - table[right - 1])
        return (position / self.steps).to(angle.dtype)


class Motion(NamedTuple):
    """The flow at some τ: the time t, and du/dτ = p·x0 + q·eps of u = x_t/scale."""

    t: Tensor
    scale: Tensor
    p: Tensor
    q: Tensor


def flow_clock(path: Path, t: Tensor) -> Tensor:
    """The τ that an adaptive solver integrates in: t where dx_t/dt is finite, and otherwise the angle atan2(s, a)."""
    return t if path.finite_velocity else path.slope(t).clock


def motion(path: Path, clock: Tensor) -> Motion:
    """How x_t flows at τ = ``clock`` (see ``flow_clock``): finite at both ends of every path."""
    if path.finite_velocity:
        c = path(clock)
        return Motion(clock, torch.ones_like(clock), c.da, c.ds)
    t = path.time_at(clock)
    scale, _, p, q = path.slope(t)
    return Motion(t, scale, p, q)


def named_betas(schedule: Literal["linear", "cosine"], steps: int) -> Float[Tensor, " steps"]:
    """The two published tables of betas, in float64.

    ``"linear"``: 1e-4 … 0.02 at 1000 steps (Ho et al. 2020), scaled by 1000/steps at others so that the path ends at
    the same noise. ``"cosine"``: ᾱ(t) ∝ cos²((t + 0.008)/1.008 · π/2), β ≤ 0.999 (Nichol & Dhariwal 2021, eq. 17).

    Raises:
        ValueError: an unknown schedule, or too few steps for it.
    """
    if schedule == "linear":
        if steps < 21:
            raise ValueError(f"steps={steps} is too few for the linear schedule: use at least 21, or schedule='cosine'")
        scale = 1000 / steps
        return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64)
    if schedule == "cosine":
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bar = torch.cos((t + 0.008) / 1.008 * (math.pi / 2)) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise ValueError(f"unknown schedule {schedule!r}; choose 'linear' or 'cosine'")
