"""Auxiliary losses: what is added to a process's loss and may see what goes on inside the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn


class Seen(NamedTuple):
    """What a loss was computed from: x_t = a(t)·x0 + s(t)·noise, and what the network said of it."""

    x0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    cond: Mapping[str, Tensor] | None
    prediction: Tensor


@runtime_checkable
class AuxiliaryLoss(Protocol):
    """A loss (B,) beside the process's own.

    ``activations`` names modules of the network, as ``named_modules`` does ("blocks.2"); the loss is given what each
    of them returned in the forward pass whose prediction is trained.
    """

    @property
    def activations(self) -> Sequence[str]: ...

    def __call__(self, seen: Seen, activations: Mapping[str, Any]) -> Float[Tensor, " B"]: ...


Weighted = Sequence[tuple[AuxiliaryLoss, float]]


@contextmanager
def watched(network: Any, losses: Weighted) -> Iterator[dict[str, Any]]:
    """Within the block the latest outputs of the modules that the losses name, which must exist, by name."""
    outputs: dict[str, Any] = {}
    names = {name for loss, _ in losses for name in loss.activations}
    inside = getattr(network, "module", network)  # of a network that is replicated over processes
    modules = dict(inside.named_modules()) if isinstance(inside, nn.Module) and names else {}
    if unknown := sorted(names - modules.keys()):
        there = ", ".join(name for name in modules if name and name.count(".") < 2)
        raise ValueError(f"an auxiliary loss looks at {unknown[0]!r}, which the network does not have: {there}")
    with ExitStack() as hooks:
        for name in names:
            hook = modules[name].register_forward_hook(lambda *told, name=name: outputs.__setitem__(name, told[-1]))
            hooks.callback(hook.remove)
        yield outputs


def added(losses: Weighted, seen: Seen, activations: Mapping[str, Any]) -> Float[Tensor, " B"] | float:
    """The weighted sum of auxiliary losses, one for each sample; 0 without any."""
    return sum((weight * loss(seen, activations) for loss, weight in losses), 0.0)
