"""Averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of a network's weights, in a frozen copy of it in evaluation mode.

    The decay grows as (1 + n)/(10 + n) to its final value, so that the first weights are soon forgotten.

    Args:
        network: whose weights are averaged.
        decay: final decay a step.
        spread: what becomes of the copy, and later of the network: each process then averages its own share.
    """

    def __init__(self, network: nn.Module, decay: float, spread: Callable[[nn.Module], object] | None = None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if spread is not None:
            spread(self.network)
        self.decay = decay
        self._source = network
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after the ``step``-th optimizer step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._pairs is None:  # not before the first update: until then sharding may replace parameters
            self._pairs = list(self.network.parameters()), list(self._source.parameters())
        torch._foreach_lerp_(*self._pairs, 1 - decay)
