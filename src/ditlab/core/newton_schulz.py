"""Orthogonalise batches of matrices by Newton-Schulz iterations."""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]  # a, b, c of the Newton-Schulz iteration
MOST_BY_GRAM = 7  # steps; with more, eigenvalues rounded to below 0 blow up, as each step multiplies them by a²


def orthogonal_by_gram(matrices: list[Tensor], coefficients: Coefficients, steps: int, eps: float) -> list[Tensor]:
    """Push singular values towards 1, by a quintic Newton-Schulz iteration in fp32 (Jordan 2024).

    Starting from X / ‖X‖, X ← P·X with P = a + b·G + c·G² and G = X Xᵀ. All these matrices commute, so it is enough
    to iterate G ← P·G·P and the product Q of all P, as small as the shorter side, and to compute Q·X at the end.

    Args:
        matrices: (rows, columns) each, with shorter sides of equal length.
        coefficients: a, b and c.
        steps: number of iterations.
        eps: lower bound of the norms that matrices are divided by.
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
    """The same, iterating on the matrices themselves, in bf16 by default."""
    a, b, c = coefficients
    x = torch.stack([(m.mT if _tall(m) else m).to(dtype or torch.bfloat16) for m in matrices])  # (n, short, long)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return [move.mT if _tall(m) else move for m, move in zip(matrices, x, strict=True)]


def _tall(p: Tensor) -> bool:
    return p.shape[0] > p.shape[1]
