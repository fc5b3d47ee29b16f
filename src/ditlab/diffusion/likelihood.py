"""How likely data are under a process, exactly, by the ordinary differential equation that samples them.

Along the probability-flow ODE du/dτ = f(u, τ), with u = x_t/scale and τ a clock of the path, the density changes by

    log p(u(τ0)) = log p(u(τ1)) + ∫ tr(∂f/∂u) dτ        from the data at τ0 to the noise at τ1

(Chen et al. 2018; Song et al. 2021, "Score-Based Generative Modeling", appendix D.2). At τ1 the noise is N(0, I), which
is what sampling starts from. τ is t where dx_t/dt is finite, and otherwise the angle atan2(s, a), in which f is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.core.device import widest_float
from ditlab.core.errors import InputError
from ditlab.core.rng import sample_streams
from ditlab.diffusion.evaluating import evaluating
from ditlab.diffusion.paths import flow_clock, motion
from ditlab.diffusion.process import Condition, Process
from ditlab.diffusion.targets import determinant

Trace = Literal["exact", "hutchinson", "auto"]

EXACT_DIMENSIONS = 16  # up to here "auto" takes the exact trace, at one backward pass for each dimension
LEAST_DETERMINANT = 1e-3  # below it, a target cannot tell x0 and eps apart
FIRST_CLOCK = 1e-3  # where integration starts if the target cannot tell at the data


def log_likelihood(
    process: Process,
    x0: Float[Tensor, "B ..."],
    cond: Condition | None = None,
    *,
    trace: Trace = "auto",
    seed: int = 0,
    first: int = 0,
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> Float[Tensor, " B"]:
    """log p(x0 | cond) of each sample, in nats, as ``process`` without guidance would draw it in infinitely many steps.

    The network runs in evaluation mode, in its own precision, without gradients in its parameters. The steps are
    Dormand and Prince's, chosen so that the sample with the largest error keeps to the tolerances: a sample's accuracy
    does not depend on how easy its neighbours are, but its last digits do depend on them.

    Args:
        process: its start is where the density is N(0, I).
        x0: clean data. Data that lie on a grid (pixels) have no density: see ``bits_per_dim``.
        cond: as in ``Process.loss``.
        trace: ``"exact"`` takes one backward pass for each dimension of a sample at each step; ``"hutchinson"`` takes
            one, with the unbiased estimate vᵀ(∂f/∂u)v (Grathwohl et al. 2019), where v = ±1 is drawn once for each
            sample from (seed, first + i); ``"auto"`` is exact up to 16 dimensions.
        rtol, atol: relative and absolute tolerance, of u (root mean square over a sample) and of the log-density.

    Raises:
        InputError: torchdiffeq is not installed, the network's weights are in bf16 or fp16, or its field is not finite.
        ValueError: an unknown trace, or tolerances that are not above 0.
    """
    if trace not in ("exact", "hutchinson", "auto"):
        raise ValueError(f"unknown trace {trace!r}; choose 'exact', 'hutchinson' or 'auto'")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be above 0, not rtol={rtol} and atol={atol}")
    like = process.like()
    if coarse := {str(p.dtype) for p in process.parameters()} & {"torch.bfloat16", "torch.float16"}:
        raise InputError(
            f"the likelihood adapts its steps to errors below what {coarse.pop()} resolves: call network.float() first"
        )
    x0 = x0.to(like)
    cond = None if cond is None else {name: value.to(like.device) for name, value in cond.items()}
    probe = None if chosen_trace(trace, x0[0].numel()) == "exact" else rademacher(seed, first, x0)
    clocks = _limits(process)
    begin, end = (float(motion(process.path, clock).scale) for clock in clocks)
    with _frozen(process.network), evaluating([process.network]):
        flow = _augmented_flow(process, x0.shape, cond, probe)
        u1, change = _solve(flow, x0 / begin, clocks, rtol, atol)
    noise = end * u1
    log_normal = -0.5 * (noise.square().flatten(1) + math.log(2 * math.pi)).sum(1)
    return log_normal + change + x0[0].numel() * math.log(end / begin)


def chosen_trace(trace: Trace, dimensions: int) -> str:
    """What ``"auto"`` stands for with samples of that many dimensions."""
    return trace if trace != "auto" else "exact" if dimensions <= EXACT_DIMENSIONS else "hutchinson"


def rademacher(seed: int, first: int, like: Tensor) -> Tensor:
    """±1 with equal chance, shaped like ``like`` (B, ...); those of sample i depend on (seed, first + i) alone."""
    streams = sample_streams(seed, range(first, first + len(like)))
    rows = [stream.integers(0, 2, tuple(like.shape[1:])) for stream in streams]
    return torch.from_numpy(2 * np.stack(rows) - 1).to(like)


def _limits(process: Process) -> tuple[Tensor, Tensor]:
    """τ at the data and at the start of sampling.

    Where the target cannot tell eps at clean data (x0), the first is 1e-3 later: the density changes by O(1e-6) there.
    """
    path = process.path
    first, last = (flow_clock(path, torch.tensor(t, dtype=torch.float64)) for t in (0.0, process.start))
    blind = abs(float(determinant(process.target, path(torch.zeros_like(first))))) < LEAST_DETERMINANT
    return (first + FIRST_CLOCK if blind else first), last


def _augmented_flow(
    process: Process, shape: torch.Size, cond: Condition | None, probe: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """(τ, state (B, d + 1)) → its derivative: f and, in the last column, its trace."""
    denoise = process.denoiser(cond)

    def flow(clock: Tensor, state: Tensor) -> Tensor:
        at = motion(process.path, clock.cpu().double())
        with torch.enable_grad():
            u = state[:, :-1].reshape(shape).requires_grad_()
            estimate = denoise(at.scale.to(u.dtype) * u, at.t)
            f = at.p.to(u.dtype) * estimate.x0 + at.q.to(u.dtype) * estimate.eps
            trace = _trace(f, u, probe)
        return torch.cat([f.detach().flatten(1), trace[:, None]], dim=1)

    return flow


def _trace(f: Tensor, u: Tensor, probe: Tensor | None) -> Float[Tensor, " B"]:
    """vᵀ(∂f/∂u)v with a probe v; else Σ_i ∂f_i/∂u_i, one backward pass for each i over the sum of the batch."""
    if probe is not None:
        return (torch.autograd.grad(f, u, probe)[0] * probe).flatten(1).sum(1)
    rows, trace = f.flatten(1), torch.zeros(len(f), dtype=f.dtype, device=f.device)
    for i in range(rows.shape[1]):
        trace += torch.autograd.grad(rows[:, i].sum(), u, retain_graph=True)[0].flatten(1)[:, i]
    return trace


def _solve(
    flow: Callable[[Tensor, Tensor], Tensor], u: Tensor, clocks: tuple[Tensor, Tensor], rtol: float, atol: float
) -> tuple[Tensor, Tensor]:
    """u at the end and the integral of the trace."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise InputError("the likelihood needs torchdiffeq: pip install 'ditlab[ode]'") from None

    def largest(state: Tensor) -> Tensor:
        """The largest norm of a sample: root mean square of u, or the log-density's."""
        if state.dim() < 2:  # a step size, when the solver looks for its first
            return state.abs().amax()
        return torch.maximum(state[:, :-1].square().mean(1).sqrt(), state[:, -1].abs()).amax()

    state = torch.cat([u.flatten(1), u.new_zeros(len(u), 1)], dim=1)
    exact = widest_float(state.device)
    options = {"norm": largest, "dtype": exact}
    with torch.no_grad():
        times = torch.stack(clocks).to(state.device, exact)
        try:
            end = odeint(flow, state, times, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
        except AssertionError as error:  # its step shrank to nothing
            raise InputError(f"the likelihood cannot be integrated, for the field is not finite ({error})") from None
    return end[:, :-1].reshape(u.shape), end[:, -1]


@contextmanager
def _frozen(network: Any) -> Iterator[None]:
    """No gradients for the parameters; afterwards each as it was."""
    moving = [p for p in network.parameters() if p.requires_grad] if isinstance(network, nn.Module) else []
    try:
        for p in moving:
            p.requires_grad_(False)
        yield
    finally:
        for p in moving:
            p.requires_grad_(True)


# ---- images: values on a grid


def quantised(images: Float[Tensor, "B ..."], levels: int) -> Float[Tensor, "B ..."]:
    """Values in [−1, 1] rounded to the nearest of ``levels`` equally spaced ones, −1 and 1 among them."""
    return (((images + 1) / 2).clamp(0, 1) * (levels - 1)).round() / (levels - 1) * 2 - 1


def bits_per_dim(
    process: Process,
    images: Float[Tensor, "B ..."],
    levels: int,
    cond: Condition | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    **options: Any,
) -> Float[Tensor, " B"]:
    """Bits per dimension of images whose d values lie on a grid, by uniform dequantisation (Theis et al. 2016).

    Level k = 0 … levels − 1 is x = 2k/(levels − 1) − 1 and stands for the bin of width Δ = 2/(levels − 1) around it. A
    density p gives the grid point the probability P(x) = ∫ p(x + z) dz over |z_i| ≤ Δ/2, and by Jensen's inequality

        −log P(x) ≤ −E log p(x + Δ·(w − ½)) − d·log Δ,        w uniform in [0, 1)^d.

    The right-hand side over d·log 2, with one draw of w for each image from (seed, first + i), is returned: on average
    an upper bound of the bits per dimension of the quantised data.

    Args:
        images: in [−1, 1]; rounded to the levels first.
        levels: of a value: 256 for 8 bit.
        process, cond, seed, first, options: as in ``log_likelihood``.
    """
    if levels < 2:
        raise ValueError(f"levels={levels} must be at least 2")
    width, dimensions = 2 / (levels - 1), images[0].numel()
    streams = sample_streams(seed, range(first, first + len(images)), begin=2**128)
    within = torch.from_numpy(np.stack([stream.random(tuple(images.shape[1:])) for stream in streams]))
    x0 = quantised(images, levels) + width * (within.to(images) - 0.5)
    nats = log_likelihood(process, x0, cond, seed=seed, first=first, **options)
    return -(nats / dimensions + math.log(width)) / math.log(2)
