"""What a kind of conditioning does to a branch of a block: shift, scale and gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.networks.layers import Norm, is_eager, layer_norm


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
    """(1 + scale) ⊙ norm(x) + shift, the same for all tokens; the norm itself has no parameters."""
    if norm is layer_norm and _keeps_x_alone(x, by.shift, by.scale):
        return modulated_layer_norm(x, by.shift, by.scale)  # the same, in less memory
    return torch.addcmul(by.shift[:, None], norm(x), (1 + by.scale)[:, None])


def _keeps_x_alone(*tensors: Tensor) -> bool:
    """Whether there will be gradients, by ordinary autograd, and autocast has no say in it."""
    return torch.is_grad_enabled() and all(each.dtype == torch.float32 for each in tensors) and is_eager()


class ModulatedLayerNorm(torch.autograd.Function):
    """``modulate`` with the layer norm, which keeps x alone for its gradients and computes norm(x) again.

    Left to autograd, the norm keeps x and the product norm(x): a tensor of (B, N, D) in fp32 more for each branch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-6)
        ctx.save_for_backward(x, shift, scale, mean, rstd)
        return torch.addcmul(shift[:, None], normed, (1 + scale)[:, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, scale, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients
            return _by_autograd((x, shift, scale), ctx.needs_input_grad, grad)
        work = (x - mean).mul_(rstd)  # norm(x)
        of_scale = work.mul_(grad).sum(1).sum_to_size(scale.shape)
        of_normed = torch.mul(grad, (1 + scale)[:, None], out=work)
        of_x = torch.ops.aten.native_layer_norm_backward(
            of_normed, x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0]
        return of_x, grad.sum(1).sum_to_size(shift.shape), of_scale


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``ModulatedLayerNorm``, as a function."""
    y: Tensor = ModulatedLayerNorm.apply(x, shift, scale)  # type: ignore[no-untyped-call]
    return y


def _by_autograd(inputs: tuple[Tensor, ...], needed: tuple[bool, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs, which can be differentiated again."""
    x, shift, scale = inputs
    y = torch.addcmul(shift[:, None], layer_norm(x), (1 + scale)[:, None])
    wanted = [each for each, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)


def gated_sum(
    x: Float[Tensor, "B N D"], gate: Float[Tensor, "B D"] | None, branch: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N D"]:
    """x + gate ⊙ branch."""
    return x + branch if gate is None else torch.addcmul(x, gate[:, None], branch)
