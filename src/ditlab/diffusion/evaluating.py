"""How a network is run: in evaluation mode for a while, and in which type it is given x."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(networks: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode, and afterwards every module back in the mode it was in."""
    modules = (module for network in networks if isinstance(network, nn.Module) for module in network.modules())
    before = [(module, module.training) for module in modules]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def input_type(network: object, x: Tensor) -> torch.dtype:
    """The type in which a network is given x: that of its weights; x's own where they are of several types, or none."""
    weights = (p for p in network.parameters() if p.is_floating_point()) if isinstance(network, nn.Module) else iter(())
    if (first := next(weights, x)).dtype == x.dtype:
        return x.dtype
    return first.dtype if all(p.dtype == first.dtype for p in weights) else x.dtype
