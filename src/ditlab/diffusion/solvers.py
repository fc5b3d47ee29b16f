"""Solvers: one step of the reverse process, from time t to r < t, given a denoiser.

A solver sees the pair (x0, eps) and the path, never the network or what it predicts. ``integrate`` walks a grid of
times with it. Times are 0-dimensional float64 tensors on the CPU, so that coefficients are exact and cost no
synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ditlab.diffusion.paths import Path
from ditlab.diffusion.targets import Estimate

Denoiser = Callable[[Tensor, Tensor], Estimate]
Noise = Callable[[], Tensor]


@runtime_checkable
class Solver(Protocol):
    """One step. ``order`` is that of convergence; ``state`` is what a multistep method remembers, None at first."""

    @property
    def order(self) -> int: ...

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]: ...

    def evaluations(self, steps: int) -> int:
        """How often the network runs, per sample, over a whole trajectory of that many steps."""
        ...


def rebuild(path: Path, estimate: Estimate, r: Tensor) -> Tensor:
    """a(r)·x0 + s(r)·eps, which is x0 exactly at r = 0."""
    c = path(r)
    return c.a * estimate.x0 + c.s * estimate.eps


@dataclass(frozen=True)
class Euler:
    """Rebuild at r from the estimate at t. On a variance-preserving path this *is* DDIM (Song et al. 2021, eq. 12).

    Args:
        eta: share of the noise drawn anew, σ² = eta²·s_r²·(1 − SNR_t/SNR_r). 0 is deterministic; 1 is DDPM's ancestral
            step with the posterior variance β̃ (Ho et al. 2020, eq. 7), on any path.
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
        return cr.a * estimate.x0 + kept * estimate.eps + fresh.sqrt() * noise(), None

    def evaluations(self, steps: int) -> int:
        return steps


@dataclass(frozen=True)
class Heun:
    """Predict with Euler, then average the slopes at both ends (Karras et al. 2022, algorithm 1) in the path's clock.

    Averaging the (x0, eps) pairs instead would give Euler again. The last step, to r = 0, is Euler.
    """

    order = 2

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        first = denoise(x, t)
        predicted = rebuild(path, first, r)
        if r == 0:
            return predicted, None
        second = denoise(predicted, r)
        at, ar = path.slope(t), path.slope(r)
        rise = (ar.clock - at.clock) / 2 * ar.scale
        move = at.p * first.x0 + at.q * first.eps + ar.p * second.x0 + ar.q * second.eps
        return ar.scale / at.scale * x + rise * move, None

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class Remembered(NamedTuple):
    """The last estimate of x0 and the log signal-to-noise ratio λ = log(a/s) it was made at."""

    x0: Tensor
    log_snr: Tensor


@dataclass(frozen=True)
class DPMSolverPlusPlus:
    """DPM-Solver++(2M): second-order multistep in the data prediction (Lu et al. 2022, algorithm 2).

    x_r = (s_r/s_t)·x + (a_r − a_t·s_r/s_t)·D, with D = x0 + (x0 − x0_before)·h/(2·h_before) and h the step in λ.
    The first and the last step, where λ may be infinite, are of first order.
    """

    order = 2

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: Remembered | None, noise: Noise
    ) -> tuple[Tensor, Remembered]:
        estimate = denoise(x, t)
        ct, cr = path(t), path(r)
        now = Remembered(estimate.x0, torch.log(ct.a / ct.s))
        if state is None or r == 0:
            return rebuild(path, estimate, r), now
        h, h_before = torch.log(cr.a / cr.s) - now.log_snr, now.log_snr - state.log_snr
        data = estimate.x0 + h / (2 * h_before) * (estimate.x0 - state.x0)
        ratio = cr.s / ct.s
        return ratio * x + (cr.a - ct.a * ratio) * data, now

    def evaluations(self, steps: int) -> int:
        return steps


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "ddim": Euler,
    "heun": Heun,
    "ancestral": lambda: Euler(eta=1.0),
    "dpm-solver++": DPMSolverPlusPlus,
}


def as_solver(solver: str | Solver) -> Solver:
    """A solver by name, or the solver itself.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[solver]()


def integrate(
    solver: Solver, denoise: Denoiser, path: Path, x: Tensor, grid: Tensor, noise: Noise
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk ``grid``, N + 1 falling times, from x at ``grid[0]``; yield (t, x_t) after each of the N steps."""
    state = None
    for t, r in pairwise(grid):
        x, state = solver.step(denoise, path, x, t, r, state, noise)
        yield r, x
