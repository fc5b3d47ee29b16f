"""Which of torch's kernels multiply and attend on a CPU, and what of torch's own they need to know.

What is quickest differs from processor to processor: ``ditlab.machine`` measures it, and ``use`` says so here. The
defaults suit most. No choice changes more than the rounding.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and platform.machine() in ("x86_64", "AMD64")
COMPILED = 32  # keys up to which compiled fp32 attention is three steps, most of which the compiler makes one


class Kernels(NamedTuple):
    """What is asked of a CPU.

    Args:
        onednn_from: multiply-accumulates of an fp32 product without gradients, from which oneDNN is asked for it rather
            than torch, which asks MKL; None is never.
        written_out: keys up to which attention is three steps rather than torch's fused kernel, in fp32.
        written_out_training: the same where there are gradients, for whose sake the maps are kept.
        written_out_bf16: the same under autocast, where the fused kernel runs in fp32.
    """

    onednn_from: int | None = 2**22
    written_out: int = 32
    written_out_training: int = 32
    written_out_bf16: int = 512


_used = Kernels()
_held = False  # by a block of ``using``


def use(kernels: Kernels) -> None:
    """Ask for these from now on, in this process; within a block of ``using`` nothing changes."""
    global _used
    if not _held:
        _used = kernels


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Ask for these within the block."""
    global _used, _held
    before = _used, _held
    _used, _held = kernels, True
    try:
        yield
    finally:
        _used, _held = before


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off: time, conditioning and modulation are too coarse in bf16 (eight bits of mantissa)."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def is_eager() -> bool:
    """Whether what is called is simply done: not compiled, traced, mapped, nor given tangents (``torch.func``)."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and peek_interpreter_stack() is None
    )


def linear(layer: nn.Linear, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
    """x Wᵀ + b of a layer."""
    if _takes_onednn(layer, x):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    return product(x, layer.weight, layer.bias)


def product(
    x: Float[Tensor, "... I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "... O"]:
    """x Wᵀ + b. Compiled in fp32 for a CPU, b is added with what follows: else torch copies it to every row before.

    Of two dimensions the compiler would put product and sum together again.
    """
    later = torch.compiler.is_dynamo_compiling() and x.ndim > 2 and x.device.type == "cpu"
    if bias is not None and later and not torch.is_autocast_enabled("cpu"):
        return x @ weight.mT + bias
    return F.linear(x, weight, bias)


def _takes_onednn(layer: nn.Linear, x: Tensor) -> bool:
    """Whether it is a large product of plain fp32 tensors on a CPU that is not differentiated, mapped or traced."""
    if torch.is_grad_enabled() or not ONEDNN or _used.onednn_from is None or not is_eager():
        return False  # before the size is looked at, which may be a symbol
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


def layer_norm(x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... D"]:
    """(x − mean) / √(variance + eps) of each token.

    torch's eager CPU kernel takes almost twice as long where it is given no scale and shift, and none are wanted.
    """
    width = x.shape[-1]
    if x.device.type != "cpu" or x.dtype != torch.float32 or not is_eager() or is_in_torch_dispatch_mode():
        return F.layer_norm(x, (width,), eps=eps)
    return F.layer_norm(x, (width,), *_unit(width), eps)


@cache
def _unit(width: int) -> tuple[Tensor, Tensor]:
    """A scale of 1 and a shift of 0."""
    with torch.inference_mode(False):
        kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are just now
        return torch.ones(width, **kind), torch.zeros(width, **kind)


def attention(
    q: Float[Tensor, "B h N d"],
    k: Float[Tensor, "B h M d"],
    v: Float[Tensor, "B h M d"],
    mask: Bool[Tensor, "#B 1 #N M"] | None,
) -> Float[Tensor, "B h N d"]:
    """softmax(q kᵀ / √d) v, without the keys where the mask is False."""
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
    """softmax(q kᵀ / √d) v in three steps; who may read nothing reads 0."""
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is None:
        return logits.softmax(-1) @ v
    return logits.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0) @ v
