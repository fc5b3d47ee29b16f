"""MeanFlow: learn the average velocity over an interval, and sample in one step (Geng et al. 2025).

On the straight path x_t = (1 − t)·x0 + t·eps the marginal velocity v(x_t, t) moves x_t. Its average from r to t,

    u(x_t, r, t) = (x_t − x_r) / (t − r),

jumps the whole interval at once: x_r = x_t − (t − r)·u. Differentiating (t − r)·u along the path gives the identity

    u(x_t, r, t) = v − (t − r)·du/dt,        du/dt = v·∂u/∂x + ∂u/∂t

(the MeanFlow identity), whose right-hand side, computed from the network itself, is what the network is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditlab.diffusion.auxiliary import Seen, Weighted, added, watched
from ditlab.diffusion.evaluating import evaluating
from ditlab.diffusion.guidance import Guidance, as_guidance
from ditlab.diffusion.paths import LinearPath, Path, exact, match, times_of
from ditlab.diffusion.process import Condition, Process
from ditlab.diffusion.solvers import Denoiser, Noise, Solver
from ditlab.diffusion.times import LogitNormal

AVERAGE = "average"  # the solver that jumps


class MeanFlow(Process):
    """Average velocities on the straight path, in the convention of the other processes: t = 1 is noise.

    The network is u(x_t, r, t), called as ``network(x, t, {**cond, "interval": t − r})``. With an interval of 0, or
    none, it is the velocity eps − x0 of flow matching, so every solver works on it too; the solver ``"average"`` jumps
    by the average velocity.

    Args:
        network: takes ``cond["interval"]`` (B,), as ``DiT(interval=True)`` does; its output is shaped like x. In fp16
            the derivative in t needs ``time_scale=1``: at 1000 it can exceed what that type holds.
        flow_share: share of each batch with r = t, where the loss is that of flow matching (the paper: 0.75).
        times_mean, times_std: t and r are the larger and the smaller of two logit-normal draws.
        adaptive_power, adaptive_offset: p and c of the weight 1/(Δ² + c)^p of a sample whose mean squared error is Δ²
            (the paper's Δ² is the sum). p = 0 is the plain squared error.
        tangent: along which velocity du/dt is taken: ``"conditional"``, eps − x0, as in the paper, or ``"marginal"``,
            the network's own u(x_t, t, t), which varies less (Geng et al. 2025b, "Improved Mean Flows").
        guidance: classifier-free guidance folded into the target, so that sampling needs one pass; 1 is off. It is the
            effective scale ω/(1 − κ) of the paper.
        guidance_mix: κ, the share of the guided velocity that the network's own conditional velocity takes.
        condition_dropout, auxiliary: as for ``Process``.

    Raises:
        ValueError: a setting out of bounds, or guidance for a network that cannot be unconditional.
    """

    watched = "squared error"

    def __init__(
        self,
        network: Any,
        *,
        flow_share: float = 0.75,
        times_mean: float = -0.4,
        times_std: float = 1.0,
        adaptive_power: float = 1.0,
        adaptive_offset: float = 1e-3,
        tangent: Literal["conditional", "marginal"] = "conditional",
        guidance: float = 1.0,
        guidance_mix: float = 0.0,
        condition_dropout: float = 0.1,
        auxiliary: Weighted = (),
    ) -> None:
        if not 0 <= flow_share <= 1:
            raise ValueError(f"flow_share={flow_share} must be between 0 and 1")
        if tangent not in ("conditional", "marginal"):
            raise ValueError(f"unknown tangent {tangent!r}; choose 'conditional' or 'marginal'")
        if not 0 <= guidance_mix < 1:
            raise ValueError(f"guidance_mix={guidance_mix} must be at least 0 and below 1")
        if guidance != 1 and (condition_dropout == 0 or not hasattr(network, "null_condition")):
            raise ValueError(
                f"guidance={guidance} compares with the unconditional velocity: it needs a network with "
                "null_condition(cond) and condition_dropout above 0"
            )
        times = LogitNormal(times_mean, times_std)
        super().__init__(network, LinearPath(), "velocity", times, condition_dropout, auxiliary=auxiliary)
        self.flow_share, self.tangent = flow_share, tangent
        self.adaptive_power, self.adaptive_offset = adaptive_power, adaptive_offset
        self.guidance, self.guidance_mix = guidance, guidance_mix

    # ---- training

    def draw_times(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> Float[Tensor, "n 2"]:
        """The n intervals that ``losses`` draws, as columns (t, t − r), 0 ≤ r ≤ t ≤ 1; in the first ``still`` r = t."""
        one, other = (self.times(n, generator, device) for _ in range(2))
        t = torch.maximum(one, other)
        length = t - torch.minimum(one, other)
        length[: self.still(n)] = 0
        return torch.stack([t, length], 1)

    def still(self, n: int) -> int:
        """How many of n samples have r = t."""
        return round(self.flow_share * n)

    def losses(
        self,
        x0: Float[Tensor, "B ..."],
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        t: Float[Tensor, "B ..."] | None = None,
    ) -> Float[Tensor, " B"]:
        """Weighted mean squared error of the average velocity, one per sample, over random intervals.

        With ``t`` (B,) given, all intervals have length 0: the loss is flow matching's, weighted. With ``t`` (B, 2)
        given they are those, as ``draw_times`` gives them: the first ``flow_share`` have length 0.
        """
        x0 = exact(x0)
        given = self.draw_times(len(x0), generator, x0.device) if t is None else t
        still = self.still(len(x0)) if given.dim() == 2 else len(x0)
        drawn = given.unbind(1) if given.dim() == 2 else (given, torch.zeros_like(given))
        t, length = (value.to(x0.dtype).contiguous() for value in drawn)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        cond = self.drop(cond, generator)
        z = self.q_sample(x0, t, noise)
        target = self.guided(noise - x0, z, t, cond)
        if still < len(x0):
            rest = None if cond is None else {name: value[still:] for name, value in cond.items()}
            moved = self.target_over(target[still:], z[still:], t[still:], length[still:], rest)
            target = torch.cat([target[:still], moved])
        with watched(self.network, self.auxiliary) as activations:
            prediction = self.predict(z, t, _over(cond, length))
        squared = self.distance(prediction - target)
        self.unweighted = squared.detach()
        losses = squared / (self.unweighted + self.adaptive_offset) ** self.adaptive_power
        return losses + added(self.auxiliary, Seen(x0, noise, z, t, cond, prediction), activations)

    def target_over(
        self,
        velocity: Float[Tensor, "B ..."],
        z: Float[Tensor, "B ..."],
        t: Float[Tensor, " B"],
        length: Float[Tensor, " B"],
        cond: Condition | None = None,
    ) -> Float[Tensor, "B ..."]:
        """v − (t − r)·du/dt for the velocity v: what u(z, r, t) should be. Without gradients, never in bf16.

        du/dt is one Jacobian-vector product, along v in z, 1 in t and, as r stands still, 1 in the interval. Attention
        runs in its plain form, which alone has a forward derivative.
        """

        def average(z: Tensor, t: Tensor, length: Tensor) -> Tensor:
            return self.predict(z, t, _over(cond, length))

        with torch.no_grad(), _full_precision(z), sdpa_kernel(SDPBackend.MATH):
            along = velocity if self.tangent == "conditional" else average(z, t, torch.zeros_like(t))
            ones = torch.ones_like(t)
            du = torch.func.jvp(average, (z, t, length), (along, ones, ones))[1]
        return velocity - match(length, z) * du

    def guided(self, velocity: Tensor, z: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """ω·v + κ·u(z, t, t | c) + (1 − ω − κ)·u(z, t, t), the guided velocity, which needs a condition."""
        if self.guidance == 1:
            return velocity
        if not cond:
            raise ValueError("guidance needs a condition to strengthen: pass cond={'label': ...}")
        with torch.no_grad(), _full_precision(z):
            own, unconditional = self.predict(torch.cat([z, z]), torch.cat([t, t]), self.and_null(cond)).chunk(2)
        mix = self.guidance_mix
        scale = self.guidance * (1 - mix)
        return scale * velocity + mix * own + (1 - scale - mix) * unconditional

    # ---- sampling

    def stepper(self, solver: str | Solver, cond: Condition | None = None) -> Solver:
        """Jumps by the average velocity under these conditions, for the name "average"; or another solver."""
        if solver == AVERAGE or isinstance(solver, Jumps):
            return Jumps(self, cond)
        return super().stepper(solver, cond)

    def trajectory(
        self,
        n: int,
        shape: Sequence[int],
        cond: Condition | None = None,
        steps: int = 1,
        solver: str | Solver = AVERAGE,
        guidance: float | Guidance | None = None,
        *further: Any,
        **options: Any,
    ) -> Iterator[tuple[float, Float[Tensor, "n ..."]]]:
        """The states (t, x_t) from noise to data: ``steps`` jumps, without guidance, or another solver's steps."""
        if isinstance(self.stepper(solver), Jumps) and as_guidance(guidance) is not None:
            raise ValueError(
                "an average velocity cannot be guided: train with process.guidance, or sample with another solver"
            )
        return super().trajectory(n, shape, cond, steps, solver, guidance, *further, **options)

    def sample(
        self,
        n: int,
        shape: Sequence[int],
        cond: Condition | None = None,
        steps: int = 1,
        solver: str | Solver = AVERAGE,
        *further: Any,
        **options: Any,
    ) -> Float[Tensor, "n ..."]:
        """Draw samples as ``Process.sample`` does, whose further arguments it takes, by default in one jump each."""
        return super().sample(n, shape, cond, steps, solver, *further, **options)


@dataclass(frozen=True)
class Jumps(Solver):
    """x_r = x_t − (t − r)·u(x_t, r, t): the whole step at once, exactly if u is.

    A solver that asks its process for the average velocity under ``cond``, and nothing of the denoiser.
    """

    process: MeanFlow
    cond: Condition | None
    order = 1

    def step(
        self, denoise: Denoiser, path: Path, x: Tensor, t: Tensor, r: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        time, length = (times_of(value, x) for value in (t, t - r))
        self.process.evaluations += len(x)
        with torch.no_grad(), evaluating([self.process.network]):
            return x - (t - r).to(x.dtype) * self.process.predict(x, time, _over(self.cond, length)), None


def _over(cond: Condition | None, length: Tensor) -> Condition:
    return {**(cond or {}), "interval": length}


def _full_precision(x: Tensor) -> torch.autocast:
    """No autocast: a difference of times, and the derivative in time, are too coarse in bf16."""
    return torch.autocast(x.device.type, enabled=False)
