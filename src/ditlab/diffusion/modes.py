"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


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
