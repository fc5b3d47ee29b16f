"""torch's Muon, with the matrices of one shape orthogonalised together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Muon

from ditlab.training.parallel import full, shared_like

NARROW = 64  # the shorter side, up to which fewer, wider products are the quicker ones


class BatchedMuon(Muon):
    """``torch.optim.Muon`` in its options, state and, but for rounding, updates; only the work is arranged anew.

    torch orthogonalises one matrix after the other, some 300 small products a step for four blocks. Here those of one
    shape go through the Newton-Schulz iteration as one stack (measured: 2.1 instead of 7.4 ms), narrow ones even with
    others, all made as wide as the widest with zeros, which change nothing (3.0 instead of 3.5 ms for four blocks of
    width 64, 0.9 instead of 1.7 of width 32; wider ones lose by it).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    short, long = sorted(p.shape)
                    alike[short, None if short <= NARROW else long].append(p)
            for parameters in alike.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move parameters together whose shorter sides are as long."""
        lr = float(group["lr"])  # a tensor, if one was given
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        directions = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(directions, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            directions = list(torch._foreach_lerp(gradients, directions, group["momentum"]))
        directions = [full(d) for d in directions]  # of a shared matrix every process moves its share of the whole
        moves = orthogonalise(_stacked(directions), group["ns_coefficients"], group["ns_steps"], group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        for p, move in zip(parameters, moves, strict=True):
            move = move[:, : max(p.shape)]
            move = shared_like(move.mT if _tall(p) else move, p)
            p.add_(move, alpha=-lr * _scale(p.shape, group["adjust_lr_fn"]))


def _scale(shape: torch.Size, adjust_lr_fn: str | None) -> float:
    """What the learning rate of a matrix is multiplied by.

    √max(1, rows/columns) (Jordan 2024), or 0.2·√max(rows, columns), which moves it about as far as AdamW would
    (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4).
    """
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(shape))
    return math.sqrt(max(1, shape[0] / shape[1]))


def _stacked(matrices: list[Tensor]) -> Float[Tensor, "n rows columns"]:
    """The matrices in bf16, each laid on its long side, with zeros up to the longest of these."""
    short, long = min(matrices[0].shape), max(max(m.shape) for m in matrices)
    stack = matrices[0].new_zeros(len(matrices), short, long, dtype=torch.bfloat16)
    for place, m in zip(stack, matrices, strict=True):
        place[:, : max(m.shape)] = m.mT if _tall(m) else m
    return stack


def orthogonalise(
    x: Float[Tensor, "n rows columns"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "n rows columns"]:
    """Push the singular values of each matrix towards 1, by a quintic Newton-Schulz iteration in bf16 (Jordan 2024).

    X ← a·X + (b·G + c·G²)·X with G = X Xᵀ, from X / ‖X‖; rows ≤ columns.
    """
    a, b, c = coefficients
    x = x.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _tall(p: Tensor) -> bool:
    return p.shape[0] > p.shape[1]
