"""How the networks compute: which of torch's kernels run, by device, precision and mode. The formulas are elsewhere.

Which kernel is fastest differs between processors: ``ditlab.machine`` measures it and passes the result to ``use``. The
defaults suit most machines. No choice changes more than the rounding.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and platform.machine() in ("x86_64", "AMD64")
COMPILED = 32  # keys up to which compiled fp32 attention is written out: the compiler fuses most of it


class Kernels(NamedTuple):
    """The kernels of a CPU.

    Args:
        onednn_from: an fp32 product without gradients of at least so many multiply-accumulates is computed by oneDNN
            instead of torch's default, MKL; None for never.
        written_out: attention over at most so many keys is computed in three steps, in fp32, instead of by torch's
            fused kernel.
        written_out_training: the same with gradients, which need the attention map.
        written_out_bf16: the same under autocast, where the fused kernel runs in fp32.
    """

    onednn_from: int | None = 2**22
    written_out: int = 32
    written_out_training: int = 32
    written_out_bf16: int = 512


_used = Kernels()
_held = False  # inside a ``using`` block


def use(kernels: Kernels) -> None:
    """Use these kernels in this process from now on; inside a ``using`` block this does nothing."""
    global _used
    if not _held:
        _used = kernels


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Use these kernels inside the ``with`` block."""
    global _used, _held
    before = _used, _held
    _used, _held = kernels, True
    try:
        yield
    finally:
        _used, _held = before


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off: the eight bits of a bf16 mantissa are too few for time, conditions and modulation."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def is_eager() -> bool:
    """Whether torch runs each operation at once: not compiled, traced, or transformed by ``torch.func``."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and peek_interpreter_stack() is None
    )


def linear(layer: nn.Linear, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    """x Wᵀ + b."""
    if _takes_onednn(layer, x):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    return product(x, layer.weight, layer.bias)


def product(
    x: Float[Tensor, "... I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "... O"]:
    """x Wᵀ + b.

    In code compiled for a CPU in fp32, b is added apart, together with the operations that follow; otherwise torch
    first copies it to every row. With two dimensions the compiler would merge the product and the sum again.
    """
    later = torch.compiler.is_dynamo_compiling() and x.ndim > 2 and x.device.type == "cpu"
    if bias is not None and later and not torch.is_autocast_enabled("cpu"):
        return x @ weight.mT + bias
    return F.linear(x, weight, bias)


def _takes_onednn(layer: nn.Linear, x: Tensor) -> bool:
    """Whether this is a large product of plain fp32 CPU tensors, neither differentiated, transformed nor traced."""
    if torch.is_grad_enabled() or not ONEDNN or _used.onednn_from is None or not is_eager():
        return False  # checked first, because the size may be symbolic
    if x.numel() * layer.out_features < max(1, _used.onednn_from):
        return False
    tensors = (x, layer.weight) if layer.bias is None else (x, layer.weight, layer.bias)
    return (
        all(type(each) in (Tensor, nn.Parameter) for each in tensors)
        and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in tensors)
        and x.shape[-1] == layer.in_features
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and not is_in_torch_dispatch_mode()
    )


def convolve_patches(layer: nn.Conv2d, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
    """A convolution whose p × p kernel is also its stride; on a CPU, faster, as reshape + flatten + product."""
    if x.device.type != "cpu":
        return layer(x).flatten(2).transpose(1, 2).contiguous()  # (B, D, H/p, W/p) → (B, N, D)
    p, q = layer.weight.shape[2:]
    patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)  # (B, N, C·p²)
    return product(patches, layer.weight.flatten(1), layer.bias)


def gelu(x: Tensor, approximate: str) -> Tensor:
    """x Φ(x), or its approximation by tanh.

    Compiled for a CPU the approximation is computed as x σ(2u), which is equal: exp has a fast vector form there, and
    tanh does not (forward and backward take 4.2 instead of 9.7 ms for 3.1M values).
    """
    if approximate == "none" or x.device.type != "cpu" or not torch.compiler.is_dynamo_compiling():
        return F.gelu(x, approximate=approximate)
    wide = x.float() if x.dtype.itemsize < 4 else x
    twice = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide**3)  # 2u of Hendrycks & Gimpel's x/2 (1 + tanh u)
    return (wide * torch.sigmoid(twice)).to(x.dtype)


def layer_norm(x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """(x − mean) / √(variance + eps) of each token, without learned parameters.

    torch's eager CPU kernel takes almost twice as long without a scale and a shift, so it is given 1 and 0.
    """
    width = x.shape[-1]
    if x.device.type != "cpu" or x.dtype != torch.float32 or not is_eager() or is_in_torch_dispatch_mode():
        return F.layer_norm(x, (width,), eps=eps)
    return F.layer_norm(x, (width,), *_one_and_zero(width), eps)


@cache
def _one_and_zero(width: int) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # independent of torch's current defaults
        return torch.ones(width, **kind), torch.zeros(width, **kind)


def modulated(
    normed: Float[Tensor, "B N D"], shift: Float[Tensor, "#B D"], scale: Float[Tensor, "#B D"]
) -> Float[Tensor, "B N D"]:
    """(1 + scale) ⊙ normed + shift."""
    return torch.addcmul(shift[:, None], normed, (1 + scale)[:, None])


def modulated_layer_norm(
    x: Float[Tensor, "B N D"], shift: Float[Tensor, "#B D"], scale: Float[Tensor, "#B D"], eps: float
) -> Float[Tensor, "B N D"]:
    """(1 + scale) ⊙ layer_norm(x) + shift; ordinary autograd in fp32 keeps less memory for it."""
    each = (x, shift, scale)
    saves = is_eager() and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in each)
    if saves and all(tensor.dtype == torch.float32 for tensor in each):
        y: Tensor = ModulatedLayerNorm.apply(*each, eps)  # type: ignore[no-untyped-call]
        return y
    return modulated(layer_norm(x, eps), shift, scale)


class ModulatedLayerNorm(torch.autograd.Function):
    """``modulated(layer_norm(x, eps), shift, scale)`` that keeps only x for its gradients and computes the norm again.

    Autograd by itself keeps x for the norm and the norm for the product: one more tensor of (B, N, D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.shift_shape, ctx.eps = shift.shape, eps
        return modulated(normed, shift, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, rstd = ctx.saved_tensors
        d_x = d_shift = d_scale = None
        if ctx.needs_input_grad[2]:
            twice = torch.is_grad_enabled()  # second derivatives need mean and rstd as functions of x
            normed = layer_norm(x, ctx.eps) if twice else (x - mean).mul_(rstd)
            d_scale = _sum_over_tokens(grad * normed, scale.shape)
            del normed  # frees its memory before the next tensor of this size
        if ctx.needs_input_grad[1]:
            d_shift = _sum_over_tokens(grad, ctx.shift_shape)
        if ctx.needs_input_grad[0]:
            d_normed, only_x = grad * (1 + scale)[:, None], [True, False, False]
            d_x, _, _ = torch.ops.aten.native_layer_norm_backward(
                d_normed, x, x.shape[-1:], mean, rstd, None, None, only_x
            )
        return d_x, d_shift, d_scale, None


def _sum_over_tokens(each: Float[Tensor, "B N D"], shape: torch.Size) -> Tensor:
    """(B, D), or (1, D) where one modulation serves all samples."""
    return each.sum_to_size(shape[0], 1, shape[1])[:, 0]


def attention(
    q: Float[Tensor, "B h N d"],
    k: Float[Tensor, "B h M d"],
    v: Float[Tensor, "B h M d"],
    mask: Bool[Tensor, "#B 1 #N M"] | None,
) -> Float[Tensor, "B h N d"]:
    """softmax(q kᵀ / √d) v over the keys where the mask is True."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    if torch.is_autocast_enabled("cpu"):  # torch's bf16 kernel is several times slower
        with full_precision(q):
            if k.shape[-2] <= _used.written_out_bf16:
                return written_out(q, k.to(q.dtype), v.to(q.dtype), mask)
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
    if torch.compiler.is_dynamo_compiling():
        most = COMPILED
    else:
        most = _used.written_out_training if torch.is_grad_enabled() else _used.written_out
    if k.shape[-2] <= most:
        return written_out(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, mask)


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v in three steps; a query without any key gets 0."""
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is None:
        return logits.softmax(-1) @ v
    return logits.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0) @ v


def has_values(x: Tensor) -> bool:
    """Whether Python can read the values at no cost: an ordinary tensor on the CPU, outside of a compiler."""
    return type(x) is Tensor and x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


class FullPrecisionBuffers(nn.Module):
    """A module whose buffers stay in fp32 when its network is cast to bf16 or fp16."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullPrecisionBuffers:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            now = self.get_buffer(name)
            if now.dtype in (torch.bfloat16, torch.float16):
                setattr(self, name, buffer.to(now.device))
        return self
