"""Attention, the two-layer MLP of a transformer block, and the helpers both networks share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off: time, conditioning and modulation are too coarse in bf16 (eight bits of mantissa)."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zero_initialised(layer: Layer) -> Layer:
    """The layer, whose output starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier_initialised(layer: Layer) -> Layer:
    """The layer, with Glorot & Bengio's uniform weights (a convolution's taken as one matrix) and no bias at first."""
    nn.init.xavier_uniform_(layer.weight.flatten(1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ScaledDotProductAttention(nn.Module):
    """softmax(q kᵀ / √d) v, without parameters and without a mask (Vaswani et al. 2017, eq. 1).

    It is a module of its own so that a forward hook sees q, k and v: a probe recomputes the map from them while the
    fused kernel still produces the output.
    """

    def forward(
        self, q: Float[Tensor, "B h N d"], k: Float[Tensor, "B h M d"], v: Float[Tensor, "B h M d"]
    ) -> Float[Tensor, "B h N d"]:
        if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # its bf16 kernel is several times slower
            with full_precision(q):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Bidirectional multi-head self-attention: every token reads every token.

    Args:
        dim: width D of a token.
        heads: number of heads h; must divide D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim={dim} is not divisible by heads={heads}; choose heads that divide dim")
        self.heads = heads
        self.qkv = xavier_initialised(nn.Linear(dim, 3 * dim))
        self.attention = ScaledDotProductAttention()
        self.out = xavier_initialised(nn.Linear(dim, dim))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.heads, D // self.heads)  # (B, N, 3, h, D/h)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # 3 × (B, h, N, D/h)
        mixed = self.attention(q, k, v)  # (B, h, N, D/h)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))  # (B, N, D)


class MLP(nn.Sequential):
    """Linear → GELU → Linear, applied to each token alone: (B, N, D) → (B, N, D).

    Args:
        dim, hidden: widths D and of the hidden layer.
        gelu: "exact" (Hendrycks & Gimpel 2016) or its "tanh" approximation, which published DiT weights expect. They
            differ by at most 5e-4; on a CPU torch's exact kernels are the faster ones.
    """

    def __init__(self, dim: int, hidden: int, gelu: Literal["exact", "tanh"] = "exact") -> None:
        super().__init__(
            xavier_initialised(nn.Linear(dim, hidden)),
            nn.GELU(approximate="tanh" if gelu == "tanh" else "none"),
            xavier_initialised(nn.Linear(hidden, dim)),
        )
