"""Which times a network is trained at: densities on [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Times = Callable[[int, torch.Generator | None, torch.device | str], Float[Tensor, " n"]]  # draws n times


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times towards the noise, for larger images: shift·t / (1 + (shift − 1)·t) (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class Uniform:
    """Uniform on (0, 1), then shifted."""

    shift: float = 1.0

    def __call__(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> Float[Tensor, " n"]:
        return shifted(torch.rand(n, generator=generator, device=device), self.shift)


@dataclass(frozen=True)
class Stratified:
    """Uniform on (0, 1) for each sample, but one time in each n-th of it for a batch of n, then shifted.

    The loss of a batch varies less when its times are spread evenly (Kingma et al. 2021, appendix I.1).
    """

    shift: float = 1.0

    def __call__(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> Float[Tensor, " n"]:
        stratum = torch.randperm(n, generator=generator, device=device)
        return shifted((stratum + torch.rand(n, generator=generator, device=device)) / n, self.shift)


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + std·z), z standard normal, then shifted (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> Float[Tensor, " n"]:
        z = torch.randn(n, generator=generator, device=device)
        return shifted(torch.sigmoid(self.mean + self.std * z), self.shift)


@dataclass(frozen=True)
class Nodes:
    """Uniform on the nodes (k + 1)/steps, k = 0 … steps − 1, of a discrete path."""

    steps: int

    def __call__(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> Float[Tensor, " n"]:
        k = torch.randint(self.steps, (n,), generator=generator, device=device)
        return (k + 1) / self.steps
