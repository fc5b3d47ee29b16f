"""Networks of one's own, found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Made = TypeVar("Made", bound=Callable[..., nn.Module])
NETWORKS: dict[str, Callable[..., nn.Module]] = {}


def register_network(name: str) -> Callable[[Made], Made]:
    """A decorator that makes a network known by name: ``--network own --network.name NAME``.

    It goes on a class, or on any callable, that makes the network from ``shape`` of a sample, ``num_classes`` (None
    without labels) and the settings of the configuration, all by keyword. The network is any ``f(x (B, *shape), t (B,)
    in [0, 1], cond) -> (B, *shape)``; with ``null_condition(cond)`` it can be guided. Registered again, as a notebook's
    cell is, the latest is the one.
    """

    def register(make: Made) -> Made:
        NETWORKS[name] = make
        return make

    return register


def make_network(name: str, **arguments: Any) -> nn.Module:
    """The network of that name.

    Raises:
        ValueError: there is none; those that are there are listed.
    """
    if name not in NETWORKS:
        known = f"choose one of {', '.join(NETWORKS)}, or register it" if NETWORKS else "register it"
        raise ValueError(f"unknown network {name!r}; {known} first")
    return NETWORKS[name](**arguments)
