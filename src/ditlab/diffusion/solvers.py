"""Solvers: one step of the reverse process, from time t to r < t, given a denoiser.

A solver sees the pair (x0, eps) and the path, never the network or what it predicts. ``integrate`` walks a grid of
times with it. Times are 0-dimensional float64 tensors on the CPU, so that coefficients are exact and cost no
synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ditlab.core.device import widest_float
from ditlab.core.registry import SOLVERS
from ditlab.diffusion.paths import Coefficients, Path, flow_clock, motion
from ditlab.diffusion.targets import Estimate
from ditlab.diffusion.variance import log_variance

Denoiser = Callable[[Tensor, Tensor], Estimate]
Noise = Callable[[], Tensor]


@runtime_checkable
class Solver(Protocol):
    """One step. ``order`` is that of convergence from where sampling starts, on every path (of averages, for a solver
    that draws noise); ``state`` is what a multistep method remembers, None at first.
    """

    @property
    def order(self) -> int: ...

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]: ...

    def evaluations(self, steps: int) -> int | None:
        """How often the network runs, per sample, over a whole trajectory of that many steps; None: no one knows yet.

        Unless a solver says otherwise, once a step. What it came to is counted in ``Process.evaluations``.
        """
        return steps


def rebuild(path: Path, estimate: Estimate, r: Tensor) -> Tensor:
    """a(r)·x0 + s(r)·eps, which is x0 exactly at r = 0."""
    c = path(r)
    return c.a * estimate.x0 + c.s * estimate.eps


@dataclass(frozen=True)
class Euler(Solver):
    """Rebuild at r from the estimate at t. On a variance-preserving path this *is* DDIM (Song et al. 2021, eq. 12).

    Args:
        eta: share of the noise drawn anew, σ² = eta²·s_r²·(1 − SNR_t/SNR_r). 0 is deterministic; 1 is DDPM's ancestral
            step with the posterior variance β̃ (Ho et al. 2020, eq. 7), on any path, or with the variance that the
            network learned (Nichol & Dhariwal 2021, eq. 15), between β̃ and the β = 1 − ᾱ_t/ᾱ_r of this very step.
    """

    eta: float = 0.0
    order = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must be between 0 (deterministic) and 1 (ancestral)")

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        estimate = denoise(x, t)
        if self.eta == 0 or r == 0:
            return rebuild(path, estimate, r), None
        ct, cr = path(t), path(r)
        fresh = self.eta**2 * cr.s**2 * (1 - (ct.a * cr.s / (cr.a * ct.s)) ** 2)
        kept = torch.sqrt(cr.s**2 - fresh)
        spread = fresh.sqrt()
        if self.eta == 1 and estimate.variance is not None:
            spread = torch.exp(log_variance(estimate.variance, 1 - (ct.a / cr.a) ** 2, fresh) / 2)
        return cr.a * estimate.x0 + kept * estimate.eps + spread * noise(), None


def trapezoid(path: Path, x: Tensor, first: Estimate, second: Estimate, t: Tensor, r: Tensor) -> Tensor:
    """From x at t to r by the mean of the slopes at both ends, in the path's clock."""
    at, ar = path.slope(t), path.slope(r)
    rise = (ar.clock - at.clock) / 2 * ar.scale
    move = at.p * first.x0 + at.q * first.eps + ar.p * second.x0 + ar.q * second.eps
    return ar.scale / at.scale * x + rise * move


@dataclass(frozen=True)
class Heun(Solver):
    """Predict with Euler, then average the slopes at both ends (Karras et al. 2022, algorithm 1) in the path's clock.

    Averaging the (x0, eps) pairs instead would give Euler again. The last step, to r = 0, is Euler.
    """

    order = 2

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        first = denoise(x, t)
        predicted = rebuild(path, first, r)
        return (predicted if r == 0 else trapezoid(path, x, first, denoise(predicted, r), t, r)), None

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class Remembered(NamedTuple):
    """An estimate of x0, the log signal-to-noise ratio λ = log(a/s) it was made at, and the one before it."""

    x0: Tensor
    log_snr: Tensor
    before: Remembered | None = None


def second_order(now: Remembered, before: Remembered, h: Tensor) -> Tensor:
    """The x0 of DPM-Solver++(2M): now + (now − before)·h/(2·h_before), with h the step in λ."""
    return now.x0 + h / (2 * (now.log_snr - before.log_snr)) * (now.x0 - before.x0)


def exponential(path: Path, x: Tensor, data: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """(s_r/s_t)·x + (a_r − a_t·s_r/s_t)·data: exact in λ where the data prediction is constant."""
    ct, cr = path(t), path(r)
    ratio = cr.s / ct.s
    return ratio * x + (cr.a - ct.a * ratio) * data


def log_snr(path: Path, t: Tensor) -> Tensor:
    """λ = log(a/s)."""
    a, s, *_ = path(t)
    return torch.log(a / s)


@dataclass(frozen=True)
class DPMSolverPlusPlus(Solver):
    """DPM-Solver++(2M): second-order multistep in the data prediction (Lu et al. 2022, algorithm 2).

    x_r = (s_r/s_t)·x + (a_r − a_t·s_r/s_t)·D, with D = x0 + (x0 − x0_before)·h/(2·h_before) and h the step in λ.
    The first and the last step, where λ may be infinite, are of first order. From an infinite λ the error falls as
    h²·log(1/h), with h the step in t: see ``DPMSolverPlusPlus3M``.
    """

    order = 2

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: Remembered | None, noise: Noise
    ) -> tuple[Tensor, Remembered]:
        estimate = denoise(x, t)
        now = Remembered(estimate.x0, log_snr(path, t))
        if state is None or r == 0:
            return rebuild(path, estimate, r), now
        return exponential(path, x, second_order(now, state, log_snr(path, r) - now.log_snr), t, r), now


@dataclass(frozen=True)
class DPMSolverPlusPlus3M(Solver):
    """DPM-Solver++(3M): third-order multistep in the data prediction (Lu et al. 2022, appendix B).

    x0 as a function of λ is taken as the parabola through its last three estimates, and integrated exactly:
    x_r = (s_r/s_t)·x + a_r·(φ1·x0 + φ2·x0′ + φ3·x0″), φ1 = 1 − e^−h, φ2 = h − φ1, φ3 = h²/2 − φ2.

    The first step is Heun's and the second DPM-Solver++(2M)'s, with errors of h³ made once only; the last, to r = 0
    where λ is infinite, is of first order.

    The order is three between times with a finite λ, and two from pure noise with a = 0: there λ grows by log(1 + 1/k)
    in the k-th step, however small that is, so the parabola misses x by h²/k², which adds up to h².

    φ3 is the exact integral (the authors' code takes half of the last term, which is of second order). Over few, long
    steps in λ a parabola overshoots: there DPM-Solver++(2M) is the better one.
    """

    order = 2  # from pure noise with a = 0; 3 from any other

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: Remembered | None, noise: Noise
    ) -> tuple[Tensor, Remembered]:
        estimate = denoise(x, t)
        now = Remembered(estimate.x0, log_snr(path, t), None if state is None else state._replace(before=None))
        if r == 0:
            return rebuild(path, estimate, r), now
        if state is None:
            return trapezoid(path, x, estimate, denoise(rebuild(path, estimate, r), r), t, r), now
        h, h1 = log_snr(path, r) - now.log_snr, now.log_snr - state.log_snr
        if state.before is None:
            return exponential(path, x, second_order(now, state, h), t, r), now
        h2 = state.log_snr - state.before.log_snr
        near, far = (now.x0 - state.x0) / h1, (state.x0 - state.before.x0) / h2
        bend = (near - far) / (h1 + h2)  # half the second derivative
        phi1 = -torch.expm1(-h)
        phi2 = h - phi1
        phi3 = h**2 / 2 - phi2
        data = phi1 * now.x0 + phi2 * (near + h1 * bend) + 2 * phi3 * bend
        return path(r).s / path(t).s * x + path(r).a * data, now

    def evaluations(self, steps: int) -> int:
        return steps if steps == 1 else steps + 1


DiffusionForm = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]

DIFFUSION: dict[str, Callable[[Coefficients, Tensor], Tensor]] = {
    "constant": lambda c, t: torch.ones_like(t),
    "sbdm": lambda c, t: torch.where(c.a > 1e-3, c.s * c.ds - c.da / c.a * c.s**2, math.inf),
    "sigma": lambda c, t: c.s,
    "linear": lambda c, t: t,
    "decreasing": lambda c, t: ((1 - torch.cos(math.pi * t)) / 2) ** 2,
    "increasing-decreasing": lambda c, t: torch.sin(math.pi * t) ** 2,
}


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """The reverse SDE with a diffusion w(t) of choice; the marginals are the flow's (Ma et al. 2024, "SiT").

    x_r = x + (r − t)·(velocity − w·score) + √(2·w·(t − r))·z, with score = −eps/s, and w counted as SiT's released
    sampler does (the paper's is twice that). Where w is infinite (``"sbdm"`` at pure noise, of which there is nothing
    to renew) a step is the flow's alone. ``order`` is the weak one, of averages.

    Args:
        form: w over ``norm``, in our direction of time: 1; s·s′ − s²·a′/a, half of a variance-preserving path's β; s;
            t; sin⁴(πt/2); sin²(πt).
        norm: scale of w; 0 is the flow without noise. (SiT scales the cosine in ``"decreasing"`` instead.)
        last_step: the one to r = 0 draws no noise; it is x0 as the network sees it (``"tweedie"``), the ``"mean"`` of
            the step, as SiT publishes its samples, or the flow's own ``"euler"`` step. The mean takes too much noise
            away unless the step is small.
    """

    form: DiffusionForm = "sigma"
    norm: float = 1.0
    last_step: Literal["tweedie", "mean", "euler"] = "tweedie"
    order = 1

    def __post_init__(self) -> None:
        if self.form not in DIFFUSION:
            raise ValueError(f"unknown diffusion form {self.form!r}; choose one of {', '.join(DIFFUSION)}")
        if self.last_step not in ("tweedie", "mean", "euler"):
            raise ValueError(f"unknown last step {self.last_step!r}; choose 'tweedie', 'mean' or 'euler'")
        if not (math.isfinite(self.norm) and self.norm >= 0):
            raise ValueError(f"norm={self.norm} must be at least 0")

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        estimate, c = denoise(x, t), path(t)
        if r == 0 and self.last_step == "tweedie":
            return rebuild(path, estimate, r), None
        w = self.norm * DIFFUSION[self.form](c, t)
        if not w.isfinite() or (r == 0 and self.last_step == "euler"):
            w = torch.zeros_like(w)
        mean = x + (r - t) * (c.da * estimate.x0 + (c.ds + w / c.s) * estimate.eps)
        return (mean if r == 0 or w == 0 else mean + torch.sqrt(2 * w * (t - r)) * noise()), None


def largest_of_samples(error: Tensor) -> Tensor:
    """The largest root mean square among the samples: no hard one hides behind easy ones."""
    return error.flatten(1).square().mean(1).sqrt().max()


@dataclass(frozen=True)
class DormandPrince(Solver):
    """Dormand–Prince 5(4) with adaptive steps, by torchdiffeq: as many evaluations as the tolerances ask for.

    It solves the flow in t, or in the angle atan2(s, a) where dx/dt is infinite. The grid says at which times x_t
    comes out, not where it steps; all of them are held at once. On a discrete path it stops at the first published
    step, below which no network was trained, and rebuilds from there. The worst sample of a batch sets the step, so a
    sample depends on its batch within the tolerances.

    Args:
        rtol, atol: tolerated error of a step, relative and absolute, as a root mean square over a sample.

    Raises:
        ValueError: torchdiffeq is not installed, or a tolerance is not above 0.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    order = 5
    adaptive = True  # chooses its steps

    def __post_init__(self) -> None:
        if find_spec("torchdiffeq") is None:
            raise ValueError("the solver 'dopri5' needs torchdiffeq: pip install 'ditlab[ode]'")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol={self.rtol} and atol={self.atol} must be above 0")

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        *_, (_, x) = self.walk(denoise, path, x, torch.stack([t, r]), noise)
        return x, None

    def walk(
        self, denoise: Denoiser, path: Path, x: Tensor, grid: Tensor, noise: Noise
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(t, x_t) at all times of the grid but the first."""
        from torchdiffeq import odeint

        def slope(clock: Tensor, u: Tensor) -> Tensor:
            at = motion(path, clock.cpu().double())
            estimate = denoise(at.scale * u, at.t)
            return at.p * estimate.x0 + at.q * estimate.eps

        end = max(float(grid[-1]), min(float(grid[0]), path.first))
        stops = torch.cat([grid[grid > end], grid.new_tensor([end])])
        clock = flow_clock(path, stops)
        scale = torch.ones_like(stops) if path.finite_velocity else path.slope(stops).scale
        exact = widest_float(x.device)
        clock = clock.to(x.device, exact)
        options = {"rtol": self.rtol, "atol": self.atol, "options": {"norm": largest_of_samples, "dtype": exact}}
        u = x / scale[0]
        states = u[None] if len(stops) == 1 else odeint(slope, u, clock, method="dopri5", **options)
        reached = dict(zip(stops.tolist(), zip(scale, states, strict=True), strict=True))
        for t in grid[1:]:
            if float(t) in reached:
                factor, u = reached[float(t)]
                yield t, factor * u
            else:
                factor, u = reached[end]
                yield t, rebuild(path, denoise(factor * u, stops[-1]), t)

    def evaluations(self, steps: int) -> int | None:
        return None


for _name, _make in {
    "euler": Euler,
    "ddim": Euler,
    "heun": Heun,
    "ancestral": lambda: Euler(eta=1.0),
    "dpm-solver++": DPMSolverPlusPlus,
    "dpm-solver++3m": DPMSolverPlusPlus3M,
    "euler-maruyama": EulerMaruyama,
    "dopri5": DormandPrince,
}.items():
    SOLVERS.provide(_name)(_make)


def adaptive(name: str) -> bool:
    """Whether the solver of that name chooses its steps, so that nobody knows how often the network will run."""
    return getattr(SOLVERS[name], "adaptive", False)


def as_solver(solver: str | Solver) -> Solver:
    """A solver by name, where an unknown one is a ``ValueError``, or the solver itself."""
    made: Solver = SOLVERS[solver]() if isinstance(solver, str) else solver
    return made


def integrate(
    solver: Solver, denoise: Denoiser, path: Path, x: Tensor, grid: Tensor, noise: Noise
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go down ``grid``, N + 1 falling times, from x at ``grid[0]``; yield (t, x_t) after each of the N steps.

    A solver that chooses its own steps between these times has a method ``walk``; any other takes one step for each.
    """
    if hasattr(solver, "walk"):
        yield from solver.walk(denoise, path, x, grid, noise)
        return
    state = None
    for t, r in pairwise(grid):
        x, state = solver.step(denoise, path, x, t, r, state, noise)
        yield r, x
