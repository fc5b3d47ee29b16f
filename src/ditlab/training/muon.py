"""torch's Muon, with the matrices of one width orthogonalised together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Muon

from ditlab.core.distributed import full, shared_like
from ditlab.core.newton_schulz import MOST_BY_GRAM, orthogonal_by_gram, orthogonal_by_matrix


class BatchedMuon(Muon):
    """``torch.optim.Muon`` in its options, state and, but for rounding, updates; only the work is arranged anew.

    torch orthogonalises one matrix after the other in bf16, some 300 small products a step for four blocks; without
    bf16 hardware each of them is emulated (docs/decisions/0002). Here matrices go through the iteration as one stack.

    Args:
        params, options: as of ``torch.optim.Muon``.
        precision: of the products; "fp32" iterates on Gram matrices, whose squared singular values bf16 is too coarse
            for, and "bf16" on the matrices themselves, which is the quicker where bf16 products are many times as fast.
    """

    def __init__(
        self, params: Iterable[Tensor], *, precision: Literal["fp32", "bf16"] = "fp32", **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[min(p.shape), None if self._by_gram(group) else max(p.shape)].append(p)
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
        options = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if self._by_gram(group):
            moves = orthogonal_by_gram(directions, *options)
        else:
            moves = orthogonal_by_matrix(directions, *options, torch.float32 if self.precision == "fp32" else None)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        for p, move in zip(parameters, moves, strict=True):
            p.add_(shared_like(move, p), alpha=-lr * _scale(p.shape, group["adjust_lr_fn"]))

    def _by_gram(self, group: dict[str, Any]) -> bool:
        return self.precision == "fp32" and group["ns_steps"] <= MOST_BY_GRAM


def _scale(shape: torch.Size, adjust_lr_fn: str | None) -> float:
    """What the learning rate of a matrix is multiplied by.

    √max(1, rows/columns) (Jordan 2024), or 0.2·√max(rows, columns), which moves it about as far as AdamW would
    (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4).
    """
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(shape))
    return math.sqrt(max(1, shape[0] / shape[1]))
