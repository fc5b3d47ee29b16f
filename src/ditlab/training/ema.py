"""Averaged weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of a network's weights, in a frozen copy of it in evaluation mode.

    The decay grows as (1 + n)/(10 + n) to its final value, so that the first weights are soon forgotten.

    Args:
        network: whose weights are averaged.
        decay: final decay a step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self._averaged: list[Tensor] = list(self.network.parameters())
        self._latest: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after the ``step``-th optimizer step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._latest, 1 - decay)
