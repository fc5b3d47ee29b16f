"""Processes: a network, a path, a target and a density of times make a loss and a sampler, for data of any shape."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.chance import SampleNoise
from ditlab.diffusion.guidance import Guidance, as_guidance
from ditlab.diffusion.paths import CosinePath, DiscreteVP, LinearPath, Path, match, named_betas
from ditlab.diffusion.solvers import Denoiser, Solver, as_solver, integrate
from ditlab.diffusion.targets import Estimate, compose, determinant, find_target, resolve
from ditlab.diffusion.times import LogitNormal, Nodes, Stratified, Times, Uniform

Condition = Mapping[str, Tensor]


class Process(nn.Module):
    """What DDPM and flow matching share, which is everything but their construction.

    Args:
        network: ``network(x (B, ...), t (B,), cond) -> (B, ...)``. If it has ``null_condition(cond)``, conditions are
            dropped in training and classifier-free guidance is possible; otherwise they are always kept.
        path, target, times: where x_t lies, what the network predicts, when it is trained.
        condition_dropout: share of samples whose conditions are replaced by the null condition in ``loss``.
    """

    def __init__(self, network: Any, path: Path, target: str, times: Times, condition_dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 <= condition_dropout <= 1:
            raise ValueError(f"condition_dropout={condition_dropout} must be between 0 and 1")
        self.network = network
        self.path = path
        self.target_name = target
        self.target = find_target(target, path)
        self.times = times
        self.condition_dropout = condition_dropout

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

    def losses(
        self,
        x0: Float[Tensor, "B ..."],
        cond: Condition | None = None,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
    ) -> Float[Tensor, " B"]:
        """Mean squared error of the prediction, one per sample; at random times unless ``t`` is given."""
        t = self.times(len(x0), generator, x0.device) if t is None else self.as_time(t)
        t = t.to(x0.dtype)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        cond = self.drop(cond, generator)
        prediction = self.predict(self.q_sample(x0, t, noise), t, cond)
        error = prediction - compose(self.target, self.path(t), x0, noise)
        return error.square().flatten(1).mean(1)

    def loss(
        self, x0: Float[Tensor, "B ..."], cond: Condition | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """The mean of ``losses``: a scalar to call ``backward`` on."""
        return self.losses(x0, cond, generator=generator).mean()

    def drop(self, cond: Condition | None, generator: torch.Generator | None) -> Condition | None:
        """Replace the conditions of some samples, drawn one by one, with the null condition."""
        if not cond or self.condition_dropout == 0 or not hasattr(self.network, "null_condition"):
            return cond
        first = next(iter(cond.values()))
        gone = torch.rand(len(first), generator=generator, device=first.device) < self.condition_dropout
        null = self.network.null_condition(cond)
        return {name: torch.where(_column(gone, value), null[name], value) for name, value in cond.items()}

    def predict(self, x: Float[Tensor, "B ..."], t: Float[Tensor, " B"], cond: Condition | None) -> Tensor:
        """What the network says of the target, shaped like x; a learned variance is left out."""
        prediction = self.network(x, t, cond).to(x.dtype)
        return prediction.chunk(2, dim=1)[0] if getattr(self.network, "learned_variance", False) else prediction

    # ---- sampling

    def denoiser(self, cond: Condition | None = None, guidance: float | Guidance | None = None) -> Denoiser:
        """A function (x_t, t) -> (x0, eps), with the condition and the guidance bound.

        With guidance the conditional and the unconditional pass are one forward of twice the batch.
        """
        guide = as_guidance(guidance)
        if guide is not None and not cond:
            raise ValueError("guidance needs a condition to strengthen: pass cond={'label': ...}")
        if guide is not None and not hasattr(self.network, "null_condition"):
            raise ValueError(
                f"guidance needs {type(self.network).__name__}.null_condition(cond), which it does not have"
            )

        def estimate(x: Tensor, t: Tensor, cond: Condition | None) -> Estimate:
            t = self.as_time(t)
            y = self.predict(x, t.to(x.device, x.dtype).expand(len(x)), cond)
            return resolve(self.target, self.path(t), x, y)

        def guided(x: Tensor, t: Tensor) -> Estimate:
            assert guide is not None
            assert cond
            null = self.network.null_condition(cond)
            both = {name: torch.cat([value, null[name]]) for name, value in cond.items()}
            pair = estimate(torch.cat([x, x]), torch.cat([t, t]) if t.dim() else t, both)
            (strong_x0, weak_x0), (strong_eps, weak_eps) = pair.x0.chunk(2), pair.eps.chunk(2)
            return guide(Estimate(strong_x0, strong_eps), Estimate(weak_x0, weak_eps), t)

        return (lambda x, t: estimate(x, t, cond)) if guide is None else guided

    @property
    def start(self) -> float:
        """The time sampling starts at: 1, or just below it where the target cannot tell x0 from pure noise."""
        d = determinant(self.target, self.path(torch.ones((), dtype=torch.float64)))
        return 1.0 if abs(float(d)) >= 1e-3 else 1 - 1e-3

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
    ) -> Iterator[tuple[float, Float[Tensor, "n ..."]]]:
        """The states (t, x_t) from noise to data, steps + 1 of them; the arguments are those of ``sample``."""
        noise, cond = self.begin(n, shape, cond, steps, seed, first)
        denoise = self.denoiser(cond, guidance)

        def in_evaluation(x: Tensor, t: Tensor) -> Estimate:
            with torch.no_grad(), evaluating(self.network):
                return denoise(x, t)

        grid = torch.linspace(self.start, 0, steps + 1, dtype=torch.float64)
        start = noise()
        yield self.start, start
        for t, x in integrate(as_solver(solver), in_evaluation, self.path, start, grid, noise):
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
    ) -> Float[Tensor, "n ..."]:
        """Draw samples, never clipped. The network runs in evaluation mode, without gradients.

        Args:
            n: how many.
            shape: of one sample, such as (1, 16, 16) or (2,).
            cond: ``{"label": (n,) int64}``, or None.
            steps: number of solver steps; Heun evaluates the network 2·steps − 1 times, the others ``steps`` times.
            solver: ``"euler"`` (= ``"ddim"``), ``"heun"``, ``"ancestral"``, ``"dpm-solver++"``, or a Solver.
            guidance: classifier-free guidance scale; None or 1 for none.
            seed, first: sample i's noise depends on (seed, first + i) alone, whatever the batch.
        """
        walk = self.trajectory(
            n, shape, cond=cond, steps=steps, solver=solver, guidance=guidance, seed=seed, first=first
        )
        return deque(walk, maxlen=1).pop()[1]

    def evaluations(self, solver: str | Solver, steps: int) -> int:
        """How often the network runs for each sample, the two halves of a guided pass counted as one."""
        return as_solver(solver).evaluations(steps)

    def begin(
        self, n: int, shape: Sequence[int], cond: Condition | None, steps: int, seed: int, first: int
    ) -> tuple[SampleNoise, Condition | None]:
        """What every walk from noise starts with: the noise of its samples, and the conditions on their device.

        Raises:
            ValueError: no step, or no sample.
        """
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        like = self.like()
        cond = None if cond is None else {name: value.to(like.device) for name, value in cond.items()}
        return SampleNoise(seed, range(first, first + n), shape, like), cond

    def like(self) -> Tensor:
        """An empty tensor on the network's device, in fp32 (fp64 for a network in fp64)."""
        weight = next(self.parameters(), torch.empty(0))
        return torch.empty(0, device=weight.device, dtype=torch.promote_types(torch.float32, weight.dtype))


def _column(mask: Tensor, value: Tensor) -> Tensor:
    """(B,) shaped to broadcast over the trailing dimensions of value (B, ...)."""
    return mask.reshape(-1, *[1] * (value.dim() - 1))


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """Evaluation mode, and afterwards every module back in the mode it was in."""
    before = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


class FlowMatching(Process):
    """Flow matching: learn the velocity dx_t/dt of the path from data to noise (Lipman et al. 2023; Liu et al. 2023).

    On the linear path the velocity is eps − x0.

    Args:
        network: any ``f(x, t, cond)`` with an output shaped like x.
        path: ``"linear"``, or ``"cosine"`` (variance-preserving).
        times: ``"uniform"``, ``"stratified"`` (uniform, spread evenly over each batch) or ``"logit-normal"``.
        shift: above 1 moves training times towards the noise, as large images need, below 1 towards the data.
        condition_dropout: share of training samples whose conditions are dropped.
    """

    def __init__(
        self,
        network: Any,
        *,
        path: Literal["linear", "cosine"] = "linear",
        times: Literal["uniform", "stratified", "logit-normal"] = "uniform",
        shift: float = 1.0,
        condition_dropout: float = 0.1,
    ) -> None:
        paths: dict[str, Callable[[], Path]] = {"linear": LinearPath, "cosine": CosinePath}
        densities: dict[str, Callable[..., Times]] = {
            "uniform": Uniform,
            "stratified": Stratified,
            "logit-normal": LogitNormal,
        }
        if path not in paths:
            raise ValueError(f"unknown path {path!r}; choose one of {', '.join(paths)}")
        if times not in densities:
            raise ValueError(f"unknown times {times!r}; choose one of {', '.join(densities)}")
        if getattr(network, "learned_variance", False):
            raise ValueError("flow matching has no variance to learn; build the network with learned_variance=False")
        super().__init__(network, paths[path](), "velocity", densities[times](shift=shift), condition_dropout)


class DDPM(Process):
    """Denoising diffusion on a discrete variance-preserving path (Ho et al. 2020).

    A network with ``learned_variance`` has 2C channels out; the first C are trained and used, the variance is not: the
    ancestral step takes the posterior's.

    Args:
        network: any ``f(x, t, cond)`` with an output shaped like x.
        steps: number of published steps; t = (k + 1)/steps for k = 0 … steps − 1. Training uses these times alone.
        schedule: ``"linear"`` or ``"cosine"`` betas.
        target: ``"eps"``, ``"x0"`` or ``"v"``.
        condition_dropout: share of training samples whose conditions are dropped.
    """

    def __init__(
        self,
        network: Any,
        steps: int = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        target: Literal["eps", "x0", "v"] = "eps",
        *,
        condition_dropout: float = 0.1,
    ) -> None:
        path = DiscreteVP(named_betas(schedule, steps))
        super().__init__(network, path, target, Nodes(steps), condition_dropout)
        self.steps = steps

    def as_time(self, t: Tensor) -> Tensor:
        """Times as floats in [0, 1]; whole numbers are published indices k.

        Raises:
            ValueError: an index beyond the steps (looked at on the CPU alone: a GPU need not wait).
        """
        if t.is_floating_point():
            return t
        if t.device.type == "cpu" and t.numel() and (t.min() < 0 or t.max() >= self.steps):
            raise ValueError(f"step indices run from 0 to {self.steps - 1}, not {int(t.min())} to {int(t.max())}")
        return (t + 1) / self.steps
