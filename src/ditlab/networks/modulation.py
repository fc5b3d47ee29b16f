"""Shift, scale and gate: how the conditions act on a branch f of a block (Peebles & Xie 2023, section 3.2).

x ← x + gate ⊙ f((1 + scale) ⊙ norm(x) + shift), the same for all tokens of a sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.networks import kernels
from ditlab.networks.layers import EPS, Norm, layer_norm


class Modulation(NamedTuple):
    """The modulation of one branch: (B, D) each, or (1, D) if all samples share it. No gate means a gate of 1."""

    shift: Float[Tensor, "B D"]
    scale: Float[Tensor, "B D"]
    gate: Float[Tensor, "B D"] | None = None


class BlockModulation(NamedTuple):
    """The modulation of both branches of a block."""

    attn: Modulation
    mlp: Modulation


def modulate(x: Float[Tensor, "B N D"], by: Modulation, norm: Norm = layer_norm) -> Float[Tensor, "B N D"]:
    """(1 + scale) ⊙ norm(x) + shift; the norm has no parameters."""
    if norm is layer_norm:
        return kernels.modulated_layer_norm(x, by.shift, by.scale, EPS)
    return kernels.modulated(norm(x), by.shift, by.scale)


def gated_sum(
    x: Float[Tensor, "B N D"], gate: Float[Tensor, "B D"] | None, branch: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N D"]:
    """x + gate ⊙ branch."""
    return x + branch if gate is None else torch.addcmul(x, gate[:, None], branch)
