"""Matrices made orthogonal by Newton-Schulz iterations, many at a time."""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]  # a, b, c of the Newton-Schulz iteration


MOST_BY_GRAM = 7  # steps, after which rounded eigenvalues below 0 would have grown by a² in each


def orthogonal_by_gram(matrices: list[Tensor], coefficients: Coefficients, steps: int, eps: float) -> list[Tensor]:
    """The matrices with singular values pushed towards 1, by a quintic Newton-Schulz iteration in fp32 (Jordan 2024).

    X ← P·X with P = a + b·G + c·G² and G = X Xᵀ, from X / ‖X‖. All of these commute, so it is enough to follow
    G ← P·G·P and the product Q of all P, which are as small as the shorter side: X ← Q·X comes last.

    Args:
        matrices: (rows, columns) each, whose shorter sides are as long as one another.
        coefficients: a, b and c.
        steps: of the iteration.
        eps: the least norm that a matrix is divided by.
    """
    a, b, c = coefficients
    wide = [m.float() for m in matrices]
    gram = torch.stack([m.mT @ m if _tall(m) else m @ m.mT for m in wide])  # (n, short, short)
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=eps)[:, None, None]  # ‖X‖² is the trace of G
    gram = gram / norm**2
    product = torch.eye(gram.shape[-1], device=gram.device).expand_as(gram)
    for step in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if step == 0 else product @ p
        if step < steps - 1:
            gram = p @ (gram @ p)
    return [m @ q if _tall(m) else q @ m for m, q in zip(wide, product / norm, strict=True)]


def orthogonal_by_matrix(
    matrices: list[Tensor], coefficients: Coefficients, steps: int, eps: float, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The same, by the iteration on the matrices themselves, in bf16 unless said: (rows, columns) or the transpose."""
    a, b, c = coefficients
    kind = dtype or torch.bfloat16
    x = torch.stack([(m.mT if _tall(m) else m).to(kind) for m in matrices])  # (n, short, long)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return [move.mT if _tall(m) else move for m, move in zip(matrices, x, strict=True)]


def _tall(p: Tensor) -> bool:
    return p.shape[0] > p.shape[1]
