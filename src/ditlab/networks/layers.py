"""Norms, attention and MLPs of a transformer block, and the helpers that the networks share.

The formulas are here; which kernel computes them on which processor is in ``kernels.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks import kernels

Option = TypeVar("Option")
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
EPS = 1e-6  # added to the variance by the norms


def choose(name: str, option: str, options: Mapping[str, Option]) -> Option:
    """What an option stands for; ``ValueError`` for an unknown one."""
    if option not in options:
        raise ValueError(f"unknown {name} {option!r}; choose {' or '.join(map(repr, options))}")
    return options[option]


def zero_initialised(layer: Layer) -> Layer:
    """The layer with weights and bias of zero, so that its output starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier_initialised(layer: Layer) -> Layer:
    """The layer with uniform weights (Glorot & Bengio 2010; a convolution counts as one matrix) and a bias of zero."""
    nn.init.xavier_uniform_(layer.weight.flatten(1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Linear(nn.Linear):
    """x Wᵀ + b."""

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return kernels.linear(self, x)


def layer_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """(x − mean) / √(variance + ε) of each token (Ba et al. 2016), without parameters."""
    return kernels.layer_norm(x, EPS)


def rms_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """x / √(mean of x² + ε) of each token (Zhang & Sennrich 2019), without parameters."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


Norm = Callable[[Tensor], Tensor]
NORMS: dict[str, Norm] = {"layer": layer_norm, "rms": rms_norm}


class HeadNorm(nn.RMSNorm):
    """g ⊙ x / √(mean of x² + ε) over the values of a head, computed in the precision of g, which is learned."""

    def forward(self, x: Float[Tensor, "B h N d"]) -> Float[Tensor, "B h N d"]:
        with kernels.full_precision(x):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class ScaledDotProductAttention(nn.Module):
    """softmax(q kᵀ / √d) v over the keys where the mask is True, without parameters (Vaswani et al. 2017, eq. 1).

    It is a module of its own so that a forward hook sees q, k, v and any mask: a probe recomputes the map from them
    while the fused kernel still produces the output.
    """

    def forward(
        self,
        q: Float[Tensor, "B h N d"],
        k: Float[Tensor, "B h M d"],
        v: Float[Tensor, "B h M d"],
        mask: Bool[Tensor, "#B 1 #N M"] | None = None,
    ) -> Float[Tensor, "B h N d"]:
        return kernels.attention(q, k, v, mask)


def check_heads(dim: int, heads: int) -> None:
    """Raise ``ValueError`` unless the number of heads divides the width."""
    if heads < 1 or dim % heads:
        raise ValueError(f"dim={dim} is not divisible by heads={heads}; choose heads that divide dim")


def split_heads(x: Float[Tensor, "B N W"], parts: int, heads: int) -> list[Float[Tensor, "B h N d"]]:
    """Cut each token into its parts (such as q, k and v), and each part into heads: W = parts · h · d."""
    each = x.view(*x.shape[:2], parts, heads, -1)  # (B, N, parts, h, d)
    return [part.transpose(1, 2) for part in each.unbind(2)]


def join_heads(x: Float[Tensor, "B h N d"]) -> Float[Tensor, "B N D"]:
    """Put the heads of each token side by side: D = h · d."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Bidirectional multi-head self-attention: every token reads every token that is not masked.

    Args:
        dim: width D of a token.
        heads: number of heads h; must divide D.
        qk_norm: divide queries and keys by their root mean square, with learned scales (Dehghani et al. 2023; Esser et
            al. 2024), which bounds their products.
        rotary: turns queries and keys by their positions, or None.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False, rotary: nn.Module | None = None) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = xavier_initialised(Linear(dim, 3 * dim))
        self.q_norm = HeadNorm(dim // heads, eps=EPS) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(dim // heads, eps=EPS) if qk_norm else nn.Identity()
        self.rotary = nn.Identity() if rotary is None else rotary
        self.attention = ScaledDotProductAttention()
        self.out = xavier_initialised(Linear(dim, dim))

    def forward(self, x: Float[Tensor, "B N D"], mask: Bool[Tensor, "B 1 1 N"] | None = None) -> Float[Tensor, "B N D"]:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)  # 3 × (B, h, N, d)
        q, k = self.rotary(self.q_norm(q)), self.rotary(self.k_norm(k))
        mixed = self.attention(q, k, v) if mask is None else self.attention(q, k, v, mask)  # (B, h, N, d)
        return self.out(join_heads(mixed))  # (B, N, D)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to other tokens: (B, N, D) reads (B, M, D), with h heads that divide D."""

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
        (q,) = split_heads(self.q(x), 1, self.heads)  # (B, h, N, d)
        k, v = split_heads(self.kv(context), 2, self.heads)  # 2 × (B, h, M, d)
        mixed = self.attention(q, k, v) if mask is None else self.attention(q, k, v, mask)  # (B, h, N, d)
        return self.out(join_heads(mixed))  # (B, N, D)


class GELU(nn.GELU):
    """x Φ(x), or its approximation by tanh (Hendrycks & Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return kernels.gelu(x, self.approximate)


class MLP(nn.Sequential):
    """W₂ GELU(W₁ x + b₁) + b₂ of each token: (B, N, D) → (B, N, D).

    Args:
        dim, hidden: widths D and of the hidden layer.
        gelu: "exact", or the "tanh" approximation, which published DiT weights expect. They differ by at most 5e-4; on
            a CPU torch's exact kernels are the faster ones.
    """

    def __init__(self, dim: int, hidden: int, gelu: Literal["exact", "tanh"] = "exact") -> None:
        super().__init__(
            xavier_initialised(Linear(dim, hidden)),
            GELU(approximate="tanh" if gelu == "tanh" else "none"),
            xavier_initialised(Linear(hidden, dim)),
        )


class SwiGLU(nn.Module):
    """W₂(SiLU(W x) ⊙ V x) of each token (Shazeer 2020, eq. 6): (B, N, D) → (B, N, D).

    ``hidden`` is that of the ``MLP`` that this one replaces. Its own width is two thirds of that, rounded to a multiple
    of 8, so that both have about as many parameters.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        own = 8 * max(1, round(hidden / 12))
        self.gate_and_value = xavier_initialised(Linear(dim, 2 * own))
        self.out = xavier_initialised(Linear(own, dim))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)
