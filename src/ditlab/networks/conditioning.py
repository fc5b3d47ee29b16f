"""How the condition vector c enters a transformer block: adaLN-Zero (Peebles & Xie 2023, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks.layers import full_precision, zero_initialised


class Modulation(NamedTuple):
    """What adaLN-Zero does to one branch f of a block: x ← x + gate ⊙ f((1 + scale) ⊙ LayerNorm(x) + shift)."""

    shift: Float[Tensor, "B D"]
    scale: Float[Tensor, "B D"]
    gate: Float[Tensor, "B D"]


class BlockModulation(NamedTuple):
    """The modulation of both branches of a block."""

    attn: Modulation
    mlp: Modulation


def modulate(
    x: Float[Tensor, "B N D"], shift: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B N D"]:
    """(1 + scale) ⊙ LayerNorm(x) + shift, the same for all tokens; the norm itself has no parameters."""
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift[:, None], normed, (1 + scale)[:, None])


def gated_sum(
    x: Float[Tensor, "B N D"], gate: Float[Tensor, "B D"], branch: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N D"]:
    """x + gate ⊙ branch."""
    return torch.addcmul(x, gate[:, None], branch)


class AdaLNZero(nn.Module):
    """SiLU → Linear from c to shift, scale and gate of each branch, starting at zero: the block starts as the identity.

    Args:
        dim: D; the linear layer has 6·D outputs.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = zero_initialised(nn.Linear(dim, 6 * dim))

    def forward(self, c: Float[Tensor, "B D"]) -> BlockModulation:
        with full_precision(c):
            parts = self.linear(F.silu(c)).chunk(6, dim=1)
        return BlockModulation(attn=Modulation(*parts[:3]), mlp=Modulation(*parts[3:]))
