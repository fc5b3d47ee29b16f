"""Norms, attention and MLPs of a transformer block, and the helpers that the networks share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks import kernels
from ditlab.networks.kernels import attention, full_precision, linear


class Linear(nn.Linear):
    """``torch.nn.Linear``, multiplied by what is quickest here (``kernels.linear``)."""

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return linear(self, x)


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


EPS = 1e-6  # of the norms


def layer_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """(x − mean) / standard deviation of each token (Ba et al. 2016), without parameters."""
    return kernels.layer_norm(x, EPS)


def rms_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """x / root mean square of each token (Zhang & Sennrich 2019), without parameters."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


Norm = Callable[[Tensor], Tensor]
NORMS: dict[str, Norm] = {"layer": layer_norm, "rms": rms_norm}


class ScaledDotProductAttention(nn.Module):
    """softmax(q kᵀ / √d) v, without parameters (Vaswani et al. 2017, eq. 1); keys where the mask is False are left out.

    It is a module of its own so that a forward hook sees q, k, v and, where there is one, the mask: a probe recomputes
    the map from them while the fused kernel still produces the output.
    """

    def forward(
        self,
        q: Float[Tensor, "B h N d"],
        k: Float[Tensor, "B h M d"],
        v: Float[Tensor, "B h M d"],
        mask: Bool[Tensor, "#B 1 #N M"] | None = None,
    ) -> Float[Tensor, "B h N d"]:
        return attention(q, k, v, mask)


class RotaryPositions(nn.Module):
    """Turn pairs of a head's values by angles that grow with the patch's column and row, so that q·k sees differences.

    Values i and i + d/2 are a pair; half of the pairs turn with the column, half with the row, by position ·
    10000^(−i/(d/4)) (Su et al. 2021, eq. 34, in each axis, as Heo et al. 2024 do for images). Tokens after the patches
    are not turned: to them all patches keep their own, absolute place.

    Args:
        grid: rows and columns of patches; tokens run row by row.
        width: d of a head; must be divisible by 4.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(
                f"a head is {width} wide, and rotary positions need a multiple of 4; choose other heads or dim"
            )
        rows, columns = torch.meshgrid(
            torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
        )
        rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        angles = torch.cat([axis.reshape(-1, 1) * rates for axis in (columns, rows)], dim=1)  # (N, d/2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Float[Tensor, "B h M d"]) -> Float[Tensor, "B h M d"]:
        patches = len(self.cos)
        one, other = x[:, :, :patches].to(self.cos.dtype).chunk(2, dim=-1)  # (B, h, N, d/2) each
        turned = torch.cat([one * self.cos - other * self.sin, one * self.sin + other * self.cos], dim=-1).to(x.dtype)
        return turned if x.shape[2] == patches else torch.cat([turned, x[:, :, patches:]], dim=2)


def check_heads(dim: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width."""
    if heads < 1 or dim % heads:
        raise ValueError(f"dim={dim} is not divisible by heads={heads}; choose heads that divide dim")


class Attention(nn.Module):
    """Bidirectional multi-head self-attention: every token reads every token that is not masked.

    Args:
        dim: width D of a token.
        heads: number of heads h; must divide D.
        qk_norm: divide queries and keys by their root mean square, with learned scales (Dehghani et al. 2023; Esser et
            al. 2024), so that no product of the two can grow without bound.
        rotary: turns queries and keys by their places, or None.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False, rotary: RotaryPositions | None = None) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = xavier_initialised(Linear(dim, 3 * dim))
        self.q_norm = nn.RMSNorm(dim // heads, eps=EPS) if qk_norm else None
        self.k_norm = nn.RMSNorm(dim // heads, eps=EPS) if qk_norm else None
        self.rotary = rotary
        self.attention = ScaledDotProductAttention()
        self.out = xavier_initialised(Linear(dim, dim))

    def forward(self, x: Float[Tensor, "B N D"], mask: Bool[Tensor, "B 1 1 N"] | None = None) -> Float[Tensor, "B N D"]:
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.heads, D // self.heads)  # (B, N, 3, h, D/h)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # 3 × (B, h, N, D/h)
        if self.q_norm is not None and self.k_norm is not None:
            with full_precision(q):
                exact = self.q_norm.weight.dtype
                q, k = self.q_norm(q.to(exact)).to(q.dtype), self.k_norm(k.to(exact)).to(k.dtype)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        mixed = self.attention(q, k, v) if mask is None else self.attention(q, k, v, mask)  # (B, h, N, D/h)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))  # (B, N, D)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to other tokens: (B, N, D) reads (B, M, D).

    Args:
        dim, heads: width D of a token; number of heads h, which must divide D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.q = xavier_initialised(Linear(dim, dim))
        self.kv = xavier_initialised(Linear(dim, 2 * dim))
        self.attention = ScaledDotProductAttention()
        self.out = xavier_initialised(Linear(dim, dim))

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        context: Float[Tensor, "B M D"],
        mask: Bool[Tensor, "B 1 1 M"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        B, N, D = x.shape
        q = self.q(x).view(B, N, self.heads, D // self.heads).transpose(1, 2)  # (B, h, N, D/h)
        kv = self.kv(context).view(B, context.shape[1], 2, self.heads, D // self.heads)
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))  # 2 × (B, h, M, D/h)
        mixed = self.attention(q, k, v) if mask is None else self.attention(q, k, v, mask)  # (B, h, N, D/h)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))  # (B, N, D)


class GELU(nn.GELU):
    """``torch.nn.GELU``; where the tanh form is compiled for a CPU, as x σ(2u), which is the same.

    tanh has no quick vector form there, and exp has: forward and backward take 4.2 instead of 9.7 ms for 3.1M values.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.approximate == "none" or x.device.type != "cpu" or not torch.compiler.is_dynamo_compiling():
            return super().forward(x)
        wide = x.float() if x.dtype.itemsize < 4 else x
        twice = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide**3)  # 2u of Hendrycks & Gimpel's x/2 (1 + tanh u)
        return (wide * torch.sigmoid(twice)).to(x.dtype)


class MLP(nn.Sequential):
    """Linear → GELU → Linear, applied to each token alone: (B, N, D) → (B, N, D).

    Args:
        dim, hidden: widths D and of the hidden layer.
        gelu: "exact" (Hendrycks & Gimpel 2016) or its "tanh" approximation, which published DiT weights expect. They
            differ by at most 5e-4; on a CPU torch's exact kernels are the faster ones.
    """

    def __init__(self, dim: int, hidden: int, gelu: Literal["exact", "tanh"] = "exact") -> None:
        super().__init__(
            xavier_initialised(Linear(dim, hidden)),
            GELU(approximate="tanh" if gelu == "tanh" else "none"),
            xavier_initialised(Linear(hidden, dim)),
        )


class SwiGLU(nn.Module):
    """W₂(SiLU(W x) ⊙ V x), applied to each token alone (Shazeer 2020, eq. 6): (B, N, D) → (B, N, D).

    Args:
        dim: D.
        hidden: width of the hidden layer of the MLP that this one replaces; its own is two thirds of it, to the next
            multiple of 8, so that it has about as many parameters.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        own = 8 * max(1, round(hidden / 12))
        self.gate_and_value = xavier_initialised(Linear(dim, 2 * own))
        self.out = xavier_initialised(Linear(own, dim))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)
