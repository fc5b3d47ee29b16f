"""How the conditions enter a transformer block: each kind of conditioning is one class, found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.core.registry import CONDITIONINGS
from ditlab.networks.conditioner import Embedded, Tokens
from ditlab.networks.kernels import full_precision
from ditlab.networks.layers import EPS, CrossAttention, Linear, xavier_initialised, zero_initialised
from ditlab.networks.modulation import BlockModulation, Modulation


class Conditioning(nn.Module, ABC):
    """One kind of conditioning in one block. A new kind is a subclass with ``forward`` and whatever else it needs.

    Attributes:
        gated: whether its modulations have gates.
        sequence: which tokens join the sequence after the patches: the "parts" (time, label, … a token each), the
            "text", or both.
        context: which tokens ``between`` reads.
    """

    gated: ClassVar[bool] = False
    sequence: ClassVar[tuple[Tokens, ...]] = ("text",)
    context: ClassVar[tuple[Tokens, ...]] = ()

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, embedded: Embedded) -> BlockModulation:
        """The modulation of both branches."""

    def between(self, x: Float[Tensor, "B N D"], embedded: Embedded) -> Float[Tensor, "B N D"]:
        """A step between attention and MLP; by default x stays as it is."""
        return x

    @classmethod
    def final(cls, dim: int) -> nn.Module:
        """A module ``Embedded`` → ``Modulation`` without a gate, for the final layer; by default adaLN."""
        return FinalAdaLN(dim)


class FinalAdaLN(Linear):
    """SiLU → Linear from c to shift and scale of the final norm, starting at zero; there is no residual to gate."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2 * dim)
        zero_initialised(self)

    def forward(self, embedded: Embedded) -> Modulation:  # type: ignore[override]
        with full_precision(embedded.vector):
            return Modulation(*super().forward(F.silu(embedded.vector)).chunk(2, dim=1))


class LearnedNorm(nn.Module):
    """The learned scale and shift of an ordinary norm, which do not depend on the conditions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, embedded: Embedded) -> Modulation:
        return Modulation(self.shift[None], self.scale[None])


class FromVector(Conditioning):
    """SiLU → Linear from c to ``outputs`` vectors (B, D): the first modulate attention, the last the MLP."""

    outputs: ClassVar[int]

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.linear = (zero_initialised if self.gated else xavier_initialised)(Linear(dim, self.outputs * dim))

    def forward(self, embedded: Embedded) -> BlockModulation:
        with full_precision(embedded.vector):
            parts = self.linear(F.silu(embedded.vector)).chunk(self.outputs, dim=1)
        each = 3 if self.gated else 2
        return BlockModulation(attn=Modulation(*parts[:each]), mlp=Modulation(*parts[-each:]))


@CONDITIONINGS.provide("adaln-zero")
class AdaLNZero(FromVector):
    """Shift, scale and gate of each branch, starting at zero: the block starts as the identity.

    6·D outputs a block (Peebles & Xie 2023, section 3.2).
    """

    gated = True
    outputs = 6


@CONDITIONINGS.provide("adaln")
class AdaLN(FromVector):
    """Shift and scale of each branch: 4·D outputs a block, no gate (Peebles & Xie 2023)."""

    outputs = 4


@CONDITIONINGS.provide("film")
class FiLM(FromVector):
    """One shift and one scale for both branches: 2·D outputs a block (Perez et al. 2018)."""

    outputs = 2


class Plain(Conditioning):
    """An unmodulated block, each of whose norms has a learned scale and shift."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.attn = LearnedNorm(dim)
        self.mlp = LearnedNorm(dim)

    def forward(self, embedded: Embedded) -> BlockModulation:
        return BlockModulation(attn=self.attn(embedded), mlp=self.mlp(embedded))

    @classmethod
    def final(cls, dim: int) -> nn.Module:
        return LearnedNorm(dim)


@CONDITIONINGS.provide("in-context")
class InContext(Plain):
    """The time and each condition are tokens of the sequence, and the patches attend to them as to one another.

    They are removed before the final layer (Peebles & Xie 2023, section 3.2).
    """

    sequence = ("parts", "text")


@CONDITIONINGS.provide("cross-attention")
class CrossAttended(Plain):
    """The time and each condition are tokens that each block reads by cross-attention.

    Between self-attention and MLP: x ← x + attention(norm(x), norm(tokens)) (Peebles & Xie 2023, section 3.2; Vaswani
    et al. 2017).
    """

    sequence = ()
    context = ("parts", "text")

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.context_norm = nn.LayerNorm(dim, eps=EPS)
        self.cross = CrossAttention(dim, heads)

    def between(self, x: Float[Tensor, "B N D"], embedded: Embedded) -> Float[Tensor, "B N D"]:
        tokens, mask = embedded.tokens(self.context)
        assert tokens is not None
        return x + self.cross(self.norm(x), self.context_norm(tokens), mask)
