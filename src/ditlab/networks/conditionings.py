"""How what a network is told enters a transformer block: kinds of conditioning, each one class, found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.core.registry import CONDITIONINGS
from ditlab.networks.conditioner import Conditions
from ditlab.networks.kernels import full_precision
from ditlab.networks.layers import (
    EPS,
    CrossAttention,
    Linear,
    xavier_initialised,
    zero_initialised,
)
from ditlab.networks.modulation import BlockModulation, Modulation

Tokens = Literal["parts", "text"]


def as_tokens(
    conditions: Conditions, which: Sequence[Tokens]
) -> tuple[Float[Tensor, "B K D"] | None, Bool[Tensor, "B K"] | None]:
    """The parts, the text or both as tokens, and which of them are to be read; None where there are none or all are."""
    pieces, mask = [], None
    if "parts" in which:
        pieces.append(torch.stack(conditions.parts, dim=1))
    if "text" in which and conditions.text is not None and conditions.text_mask is not None:
        pieces.append(conditions.text)
        mask = conditions.text_mask
        if "parts" in which:
            mask = F.pad(mask, (len(conditions.parts), 0), value=True)
    return (torch.cat(pieces, dim=1) if pieces else None), mask


class Conditioning(nn.Module, ABC):
    """One kind of conditioning in one block. A new kind is a subclass that says ``forward``, and what else it needs.

    Args:
        dim: width D of a token.
        heads: attention heads of the block.

    Attributes:
        gated: whether its modulations have gates.
        sequence: what joins the sequence after the patches: the "parts" (time, label, … a token each), the "text".
        context: what ``between`` reads.
    """

    gated: ClassVar[bool] = False
    sequence: ClassVar[tuple[Tokens, ...]] = ("text",)
    context: ClassVar[tuple[Tokens, ...]] = ()

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, conditions: Conditions) -> BlockModulation:
        """What is done to both branches."""

    def between(self, x: Float[Tensor, "B N D"], conditions: Conditions) -> Float[Tensor, "B N D"]:
        """The tokens after whatever is to happen between attention and MLP: nothing."""
        return x

    @classmethod
    def final(cls, dim: int) -> nn.Module:
        """A module Conditions → ``Modulation`` without a gate, for the layer after the last block: adaLN."""
        return FinalAdaLN(dim)


register_conditioning = CONDITIONINGS.register


def from_vector(linear: nn.Linear, c: Float[Tensor, "B D"], count: int) -> tuple[Tensor, ...]:
    """SiLU → Linear, in full precision, cut into vectors of (B, D)."""
    with full_precision(c):
        return linear(F.silu(c)).chunk(count, dim=1)


class FinalAdaLN(Linear):
    """Shift and scale of the final norm out of c, starting at zero; no gate, for no residual is left to gate."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2 * dim)
        zero_initialised(self)

    def forward(self, conditions: Conditions) -> Modulation:  # type: ignore[override]
        with full_precision(conditions.vector):
            return Modulation(*super().forward(F.silu(conditions.vector)).chunk(2, dim=1))


class LearnedNorm(nn.Module):
    """The scale and shift that an ordinary norm has: learned, and the same whatever the conditions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, conditions: Conditions) -> Modulation:
        return Modulation(self.shift[None], self.scale[None])


@CONDITIONINGS.provide("adaln-zero")
class AdaLNZero(Conditioning):
    """SiLU → Linear from c to shift, scale and gate of each branch, starting at zero: the block starts as the identity.

    6·D outputs a block (Peebles & Xie 2023, section 3.2).
    """

    gated = True

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.linear = zero_initialised(Linear(dim, 6 * dim))

    def forward(self, conditions: Conditions) -> BlockModulation:
        parts = from_vector(self.linear, conditions.vector, 6)
        return BlockModulation(attn=Modulation(*parts[:3]), mlp=Modulation(*parts[3:]))


@CONDITIONINGS.provide("adaln")
class AdaLN(Conditioning):
    """SiLU → Linear from c to shift and scale of each branch: 4·D outputs a block, no gate (Peebles & Xie 2023)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.linear = xavier_initialised(Linear(dim, 4 * dim))

    def forward(self, conditions: Conditions) -> BlockModulation:
        parts = from_vector(self.linear, conditions.vector, 4)
        return BlockModulation(attn=Modulation(*parts[:2]), mlp=Modulation(*parts[2:]))


@CONDITIONINGS.provide("film")
class FiLM(Conditioning):
    """SiLU → Linear from c to one shift and one scale for both branches: 2·D outputs a block (Perez et al. 2018)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.linear = xavier_initialised(Linear(dim, 2 * dim))

    def forward(self, conditions: Conditions) -> BlockModulation:
        both = Modulation(*from_vector(self.linear, conditions.vector, 2))
        return BlockModulation(attn=both, mlp=both)


class Plain(Conditioning):
    """A block as it is without conditions, its norms with a learned scale and shift each."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.attn = LearnedNorm(dim)
        self.mlp = LearnedNorm(dim)

    def forward(self, conditions: Conditions) -> BlockModulation:
        return BlockModulation(attn=self.attn(conditions), mlp=self.mlp(conditions))

    @classmethod
    def final(cls, dim: int) -> nn.Module:
        return LearnedNorm(dim)


@CONDITIONINGS.provide("in-context")
class InContext(Plain):
    """Time, label and every other condition are tokens of the sequence, which the patches attend to as to themselves.

    They are cut off before the final layer (Peebles & Xie 2023, section 3.2).
    """

    sequence = ("parts", "text")


@CONDITIONINGS.provide("cross-attention")
class CrossAttended(Plain):
    """Time, label and every other condition are tokens that each block reads by an attention of its own.

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

    def between(self, x: Float[Tensor, "B N D"], conditions: Conditions) -> Float[Tensor, "B N D"]:
        tokens, mask = as_tokens(conditions, self.context)
        assert tokens is not None
        mask = None if mask is None else mask[:, None, None]
        return x + self.cross(self.norm(x), self.context_norm(tokens), mask)
