"""What a kind of conditioning does to a branch of a block: shift, scale and gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.networks.kernels import is_eager
from ditlab.networks.layers import EPS, Norm, layer_norm


class Modulation(NamedTuple):
    """What a kind does to one branch f of a block: x ← x + gate ⊙ f((1 + scale) ⊙ norm(x) + shift).

    Each is (B, D), or (1, D) where it is the same for all samples. Without a gate the branch is added as it is.
    """

    shift: Float[Tensor, "B D"]
    scale: Float[Tensor, "B D"]
    gate: Float[Tensor, "B D"] | None = None


class BlockModulation(NamedTuple):
    """The modulation of both branches of a block."""

    attn: Modulation
    mlp: Modulation


def modulate(x: Float[Tensor, "B N D"], by: Modulation, norm: Norm = layer_norm) -> Float[Tensor, "B N D"]:
    """(1 + scale) ⊙ norm(x) + shift, the same for all tokens (Peebles & Xie 2023); the norm has no parameters."""
    if norm is layer_norm and _is_differentiated(x, by.shift, by.scale):
        return modulated_layer_norm(x, by.shift, by.scale)  # the same, in less memory
    return modulated(norm(x), by.shift, by.scale)


def modulated(
    normed: Float[Tensor, "B N D"], shift: Float[Tensor, "#B D"], scale: Float[Tensor, "#B D"]
) -> Float[Tensor, "B N D"]:
    """(1 + scale) ⊙ normed + shift."""
    return torch.addcmul(shift[:, None], normed, (1 + scale)[:, None])


def _is_differentiated(*tensors: Tensor) -> bool:
    """Whether ordinary autograd will want gradients of these, all in fp32, which autocast leaves as they are."""
    return (
        is_eager()
        and torch.is_grad_enabled()
        and all(each.dtype == torch.float32 for each in tensors)
        and any(each.requires_grad for each in tensors)
    )


class ModulatedLayerNorm(torch.autograd.Function):
    """``modulated(layer_norm(x), shift, scale)``, which keeps x alone for its gradients, and computes the norm again.

    Left to itself, autograd keeps x for the norm, and the norm for the product: a tensor of (B, N, D) more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, EPS)
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.shift_shape = shift.shape
        return modulated(normed, shift, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, rstd = ctx.saved_tensors
        of_x = of_shift = of_scale = None
        if ctx.needs_input_grad[2]:
            exact = torch.is_grad_enabled()  # for gradients of gradients mean and rstd are functions of x
            normed = layer_norm(x) if exact else (x - mean).mul_(rstd)
            of_scale = _over_tokens(grad * normed, scale.shape)
            del normed  # before others of its size are made
        if ctx.needs_input_grad[1]:
            of_shift = _over_tokens(grad, ctx.shift_shape)
        if ctx.needs_input_grad[0]:
            of_normed, only_x = grad * (1 + scale)[:, None], [True, False, False]
            of_x, _, _ = torch.ops.aten.native_layer_norm_backward(
                of_normed, x, x.shape[-1:], mean, rstd, None, None, only_x
            )
        return of_x, of_shift, of_scale


def _over_tokens(each: Float[Tensor, "B N D"], shape: torch.Size) -> Tensor:
    """The sum over tokens, (B, D), or over samples, too, (1, D)."""
    return each.sum_to_size(shape[0], 1, shape[1])[:, 0]


def modulated_layer_norm(
    x: Float[Tensor, "B N D"], shift: Float[Tensor, "#B D"], scale: Float[Tensor, "#B D"]
) -> Float[Tensor, "B N D"]:
    """``ModulatedLayerNorm``, as a function."""
    y: Tensor = ModulatedLayerNorm.apply(x, shift, scale)  # type: ignore[no-untyped-call]
    return y


def gated_sum(
    x: Float[Tensor, "B N D"], gate: Float[Tensor, "B D"] | None, branch: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N D"]:
    """x + gate ⊙ branch."""
    return x + branch if gate is None else torch.addcmul(x, gate[:, None], branch)
