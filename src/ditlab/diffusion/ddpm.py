"""Denoising diffusion probabilistic models (Ho et al. 2020)."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from ditlab.diffusion.paths import DiscreteVP, named_betas
from ditlab.diffusion.process import Process
from ditlab.diffusion.targets import Estimate
from ditlab.diffusion.times import Nodes
from ditlab.diffusion.variance import variational_bound


class DDPM(Process):
    """Denoising diffusion on a discrete variance-preserving path (Ho et al. 2020).

    A network with ``learned_variance`` has 2C channels out, and the second half is the variance of the ancestral step.
    It is trained by L_simple + λ·L_vlb (Nichol & Dhariwal 2021, eq. 16): the term of the variational bound in bits per
    dimension, its mean detached, times 0.001·steps, which is the published 1 at 1000 steps.

    Args:
        network: any ``f(x, t, cond)`` with an output shaped like x.
        steps: number of published steps; t = (k + 1)/steps for k = 0 … steps − 1. Training uses these times alone.
        schedule: ``"linear"`` or ``"cosine"`` betas.
        target: ``"eps"``, ``"x0"`` or ``"v"``.
        first_term: of a learned variance's bound at k = 0: data are 8-bit ``"pixels"`` in [−1, 1], or have a
            ``"density"``, as latents do.
        parts: ``condition_dropout``, ``loss_in``, ``weight`` and ``auxiliary`` of ``Process``.
    """

    grid = "respaced"

    def __init__(
        self,
        network: Any,
        steps: int = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        target: Literal["eps", "x0", "v"] = "eps",
        *,
        first_term: Literal["pixels", "density"] = "pixels",
        **parts: Any,
    ) -> None:
        if first_term not in ("pixels", "density"):
            raise ValueError(f"unknown first term {first_term!r}; choose 'pixels' or 'density'")
        if steps < 2 and getattr(network, "learned_variance", False):
            raise ValueError(f"steps={steps} leaves no variance to learn: use at least 2, or learned_variance=False")
        path = DiscreteVP(named_betas(schedule, steps))
        super().__init__(network, path, target, Nodes(steps), bound=self.variance_losses, **parts)
        self.path: DiscreteVP = path
        self.steps = steps
        self.first_term: Literal["pixels", "density"] = first_term

    def variance_losses(
        self, x0: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], t: Float[Tensor, " B"], guess: Estimate
    ) -> Float[Tensor, " B"]:
        """λ·L_vlb, with λ = 0.001 for the sum over all steps, of which each sample has one."""
        return 0.001 * self.steps * variational_bound(self.path, t, x0, noise, guess, self.first_term)

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
