"""Processes: a network, a path, a target and a density of times make a loss and a sampler, for data of any shape."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.core.rng import SampleNoise
from ditlab.diffusion.auxiliary import Seen, Weighted, added, watched
from ditlab.diffusion.evaluating import evaluating, input_type
from ditlab.diffusion.grids import Grid, sampling_times
from ditlab.diffusion.guidance import Guidance, Passes, as_guidance, must_be_learned
from ditlab.diffusion.paths import Path, exact, match, same_path, times_of
from ditlab.diffusion.solvers import Denoiser, Solver, as_solver, integrate
from ditlab.diffusion.targets import Estimate, compose, determinant, find_target, resolve
from ditlab.diffusion.times import Times
from ditlab.diffusion.weights import WEIGHTS, Weight, in_velocity

Condition = Mapping[str, Tensor]
Bound = Callable[[Tensor, Tensor, Tensor, Estimate], Tensor]


class Process(nn.Module):
    """What DDPM and flow matching share, which is everything but their construction.

    Args:
        network: ``network(x (B, ...), t (B,), cond) -> (B, ...)``. If it has ``null_condition(cond)``, conditions are
            dropped in training and classifier-free guidance is possible; otherwise they are always kept. With weights
            in bf16, fp16 or fp64 it is given x in that type; t stays exact, in fp32 at least, as do the states.
        path, target, times: where x_t lies, what the network predicts, when it is trained.
        condition_dropout: share of samples whose conditions are replaced by the null condition in ``loss``.
        bound: (x0, noise, t, estimate) -> (B,), what trains a learned variance; None if there is none to learn.
        loss_in: the squared error is that of the ``"target"``, or of the ``"velocity"`` dx_t/dt that it implies.
        weight: weights that error by time: ``"uniform"``, ``"min-snr"`` (min-SNR-γ) or a function (``weights.Weight``).
        auxiliary: further losses (B,) and their weights; they see the network's activations.

    ``evaluations`` counts, over all samples drawn so far, how often the denoiser ran; the passes that make a guided
    estimate are one. ``unweighted`` holds the errors (B,) of the latest ``losses``, detached, where a weight keeps a
    spike from showing in the losses, and ``watched`` names the figure that shows it, which the training guard reads.
    """

    grid: ClassVar[str] = "uniform"  # of sampling times, unless told otherwise
    watched: ClassVar[str] = "loss"

    def __init__(
        self,
        network: Any,
        path: Path,
        target: str,
        times: Times,
        condition_dropout: float = 0.1,
        bound: Bound | None = None,
        loss_in: str = "target",
        weight: str | Weight = "uniform",
        auxiliary: Weighted = (),
    ) -> None:
        super().__init__()
        if getattr(network, "learned_variance", False) and bound is None:
            raise ValueError(
                f"{type(self).__name__} has no variance to learn; build the network with learned_variance=False"
            )
        if not 0 <= condition_dropout <= 1:
            raise ValueError(f"condition_dropout={condition_dropout} must be between 0 and 1")
        self.network = network
        self.path = path
        self.target_name = target
        self.target = find_target(target, path)
        self.times = times
        self.condition_dropout = condition_dropout
        self.bound = bound
        self.weights = self._weights(loss_in, weight)
        self.auxiliary = auxiliary
        self.evaluations = 0
        self.unweighted: Tensor | None = None

    def _weights(self, loss_in: str, weight: str | Weight) -> list[Weight]:
        if loss_in not in ("target", "velocity"):
            raise ValueError(f"unknown loss_in {loss_in!r}; choose 'target' or 'velocity'")
        if isinstance(weight, str) and weight not in ("uniform", *WEIGHTS):
            raise ValueError(f"unknown weight {weight!r}; choose one of uniform, {', '.join(WEIGHTS)}, or a function")
        converted: list[Weight] = [in_velocity] if loss_in == "velocity" and self.target_name != "velocity" else []
        if weight == "uniform":
            return converted
        return [*converted, WEIGHTS[weight] if isinstance(weight, str) else weight]

    # ---- training

    def as_time(self, t: Tensor) -> Tensor:
        """Times as floats in [0, 1]."""
        if not t.is_floating_point():
            raise ValueError(
                "a whole-number time is a published step index, which only DDPM has; pass a float in [0, 1]"
            )
        return t

    def q_sample(self, x0: Float[Tensor, "B ..."], t: Tensor, noise: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """x_t = a(t)·x0 + s(t)·noise, t (B,) broadcast over all trailing dimensions of x0."""
        c = self.path(self.as_time(t))
        return match(c.a, x0) * x0 + match(c.s, x0) * noise

    def draw_times(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
        """The times (n,) that ``losses`` begins by drawing; given as its ``t`` they change nothing of what follows."""
        return self.times(n, generator, device)

    def losses(
        self,
        x0: Float[Tensor, "B ..."],
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
    ) -> Float[Tensor, " B"]:
        """Mean squared error of the prediction, weighted, one per sample; at random times unless ``t`` is given."""
        x0 = exact(x0)
        t = self.draw_times(len(x0), generator, x0.device) if t is None else self.as_time(t)
        t = t.to(x0.dtype)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        cond = self.drop(cond, generator)
        x_t = self.q_sample(x0, t, noise)
        with watched(self.network, self.auxiliary) as activations:
            prediction, variance = self.outputs(x_t, t, cond)
        losses = self.distance(prediction - compose(self.target, self.path(t), x0, noise))
        if self.weights:
            c = self.path(t)
            losses = losses * math.prod(weight(c, determinant(self.target, c)) for weight in self.weights)
        if variance is not None and self.bound is not None:
            guess = resolve(self.target, self.path(t), x_t, prediction.detach())._replace(variance=variance)
            losses = losses + self.bound(x0, noise, t, guess)
        if not self.auxiliary:
            return losses
        return losses + added(self.auxiliary, Seen(x0, noise, x_t, t, cond, prediction), activations)

    def distance(self, error: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """The mean square of each sample's errors; another process may measure them otherwise."""
        return error.square().flatten(1).mean(1)

    def loss(
        self, x0: Float[Tensor, "B ..."], cond: Condition | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """The mean of ``losses``: a scalar to call ``backward`` on."""
        return self.losses(x0, cond, generator=generator).mean()

    def drop(self, cond: Condition | None, generator: torch.Generator | None) -> Condition | None:
        """Replace all conditions of some samples, drawn one by one, with the null condition."""
        if not cond or self.condition_dropout == 0 or not hasattr(self.network, "null_condition"):
            return cond
        first = next(iter(cond.values()))
        gone = torch.rand(len(first), generator=generator, device=first.device) < self.condition_dropout
        null = self.network.null_condition(cond)
        return {name: torch.where(match(gone, value).bool(), null[name], value) for name, value in cond.items()}

    def and_null(self, cond: Condition) -> dict[str, Tensor]:
        """The conditions of a batch and, after them, as many null conditions."""
        null = self.network.null_condition(cond)
        return {name: torch.cat([value, null[name]]) for name, value in cond.items()}

    def outputs(
        self, x: Float[Tensor, "B ..."], t: Float[Tensor, " B"], cond: Condition | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the network says of the target and, where it learns it, of the variance: f of ``Estimate``; like x."""
        output = self.network(x.to(input_type(self.network, x)), t, cond).to(x.dtype)
        if not getattr(self.network, "learned_variance", False):
            return output, None
        prediction, variance = output.chunk(2, dim=1)
        return prediction, (variance + 1) / 2

    def predict(self, x: Float[Tensor, "B ..."], t: Float[Tensor, " B"], cond: Condition | None) -> Tensor:
        """What the network says of the target, shaped like x; a learned variance is left out."""
        return self.outputs(x, t, cond)[0]

    # ---- sampling

    def estimate(self, x: Float[Tensor, "B ..."], t: Tensor, cond: Condition | None) -> Estimate:
        """(x0, eps) and the learned variance at x_t, without guidance; t is () or (B,)."""
        x, t = exact(x), self.as_time(t)
        y, variance = self.outputs(x, times_of(t, x), cond)
        return resolve(self.target, self.path(t), x, y)._replace(variance=variance)

    def denoiser(
        self,
        cond: Condition | None = None,
        guidance: float | Guidance | None = None,
        guide: Process | None = None,
    ) -> Denoiser:
        """A function (x_t, t) -> (x0, eps, variance), with the condition and the guidance bound.

        The strong pass has the condition. The weak one has the null condition, and both are one forward of twice the
        batch; or it is the ``guide``'s with the same condition, or none (autoguidance, Karras et al. 2024).

        Raises:
            ValueError: guidance without a condition or a guide, a guide without guidance or on another path.
        """
        rule = as_guidance(guidance)
        self._check_guidance(cond, rule, guide)

        def strong(x: Tensor, t: Tensor) -> Estimate:
            return self.estimate(x, t, cond)

        def both(x: Tensor, t: Tensor) -> tuple[Estimate, Estimate]:
            if guide is not None:
                return strong(x, t), guide.estimate(x, t, cond)
            assert cond
            pair = self.estimate(torch.cat([x, x]), torch.cat([t, t]) if t.dim() else t, self.and_null(cond))
            (x0, weak_x0), (eps, weak_eps) = pair.x0.chunk(2), pair.eps.chunk(2)
            variance = None if pair.variance is None else pair.variance.chunk(2)[0]
            return Estimate(x0, eps, variance), Estimate(weak_x0, weak_eps)

        if rule is None:
            return strong
        return lambda x, t: rule(Passes(x, self.as_time(t), self.path, strong, both))

    def _check_guidance(self, cond: Condition | None, rule: Guidance | None, guide: Process | None) -> None:
        if rule is None:
            if guide is not None:
                raise ValueError("a guide needs to know how strongly to guide: pass guidance=2.0, for example")
        elif guide is None:
            if not cond:
                raise ValueError(
                    "guidance needs a condition to strengthen: pass cond={'label': ...}, or a weaker process as guide"
                )
            if not hasattr(self.network, "null_condition"):
                raise ValueError(f"guidance needs {type(self.network).__name__}.null_condition(cond), which is missing")
            must_be_learned(self.condition_dropout)
        elif not same_path(self.path, guide.path):
            raise ValueError(
                "the guide is on another path from data to noise, so its x_t is another: use a guide that was trained "
                "with the same process and schedule"
            )

    def stepper(self, solver: str | Solver, cond: Condition | None = None) -> Solver:  # noqa: ARG002 - for others
        """The solver of that name, for samples under these conditions; a process may have solvers of its own."""
        return as_solver(solver)

    @property
    def start(self) -> float:
        """The time sampling starts at: 1, or just below it where the target cannot tell x0 from pure noise."""
        d = determinant(self.target, self.path(torch.ones((), dtype=torch.float64)))
        return 1.0 if abs(float(d)) >= 1e-3 else 1 - 1e-3

    def sampling_times(
        self, steps: int, grid: str | Grid | Tensor | None = None, shift: float = 1.0
    ) -> Float[Tensor, " N"]:
        """The falling times that ``sample`` visits with these arguments."""
        return sampling_times(self.grid if grid is None else grid, self.path, self.start, steps, shift)

    def trajectory(
        self,
        n: int,
        shape: Sequence[int],
        cond: Condition | None = None,
        steps: int = 25,
        solver: str | Solver = "heun",
        guidance: float | Guidance | None = None,
        seed: int = 0,
        first: int = 0,
        grid: str | Grid | Tensor | None = None,
        shift: float = 1.0,
        guide: Process | None = None,
    ) -> Iterator[tuple[float, Float[Tensor, "n ..."]]]:
        """The states (t, x_t) from noise to data, one for each time; the arguments are those of ``sample``."""
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        like = self.like()
        cond = None if cond is None else {name: value.to(like.device) for name, value in cond.items()}
        denoise = self.denoiser(cond, guidance, guide)
        networks = [self.network] if guide is None else [self.network, guide.network]

        def in_evaluation(x: Tensor, t: Tensor) -> Estimate:
            self.evaluations += len(x)
            with torch.no_grad(), evaluating(networks):
                return denoise(x, t)

        noise = SampleNoise(seed, range(first, first + n), shape, like)
        times = self.sampling_times(steps, grid, shift)
        start = noise()
        yield float(times[0]), start
        for t, x in integrate(self.stepper(solver, cond), in_evaluation, self.path, start, times, noise):
            yield float(t), x

    def sample(
        self,
        n: int,
        shape: Sequence[int],
        cond: Condition | None = None,
        steps: int = 25,
        solver: str | Solver = "heun",
        guidance: float | Guidance | None = None,
        seed: int = 0,
        first: int = 0,
        grid: str | Grid | Tensor | None = None,
        shift: float = 1.0,
        guide: Process | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Draw samples, never clipped. The network runs in evaluation mode, without gradients.

        Args:
            n: how many.
            shape: of one sample, such as (1, 16, 16) or (2,).
            cond: ``{"label": (n,) int64}``, or None.
            steps: number of solver steps; ``Solver.evaluations`` tells how often the network runs.
            solver: a name in ``solvers.SOLVERS``, such as ``"heun"``, ``"ddim"`` or ``"dpm-solver++"``, or a Solver.
            guidance: classifier-free guidance scale, or a Guidance; None or 1 for none.
            seed, first: sample i's noise depends on (seed, first + i) alone, whatever the batch.
            grid: the times, as ``grids.sampling_times`` takes them; None for the process's own: evenly spaced in t for
                flow matching, evenly spaced published steps for DDPM.
            shift: above 1 moves the times of a continuous grid towards the noise.
            guide: a weaker process on the same path to guide away from, in the place of the null condition.

        Raises:
            ValueError: arguments that do not go together.
        """
        walk = self.trajectory(n, shape, cond, steps, solver, guidance, seed, first, grid, shift, guide)
        return deque(walk, maxlen=1).pop()[1]

    def like(self) -> Tensor:
        """An empty tensor on the network's device, in fp32 (fp64 for a network in fp64)."""
        weight = next(self.parameters(), torch.empty(0))
        return torch.empty(0, device=weight.device, dtype=torch.promote_types(torch.float32, weight.dtype))
