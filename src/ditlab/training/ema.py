"""Averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of a network's weights, in a frozen copy of it in evaluation mode.

    The decay grows as (1 + n)/(10 + n) to its final value, so that the first weights are soon forgotten. Saved buffers,
    such as a batch norm's running statistics, are copied: most are averages already.

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
        self._buffers: tuple[list[Tensor], list[Tensor]] = [], []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after the ``step``-th optimizer step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._pairs is None:  # not before the first update: until then sharding may replace parameters
            self._pairs = list(self.network.parameters()), list(self._source.parameters())
            self._buffers = saved_buffers(self.network), saved_buffers(self._source)
        torch._foreach_lerp_(*self._pairs, 1 - decay)
        for own, latest in zip(*self._buffers, strict=True):
            own.copy_(latest)


def saved_buffers(network: nn.Module) -> list[Tensor]:
    """The buffers that a checkpoint holds, such as a batch norm's running statistics: forward passes change them."""
    saved = network.state_dict(keep_vars=True).values()
    return [tensor for tensor in saved if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)]
