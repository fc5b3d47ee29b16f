"""Input, output, size and time of every part of a network, measured by hooks on real forward passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.networks.conditioner import Embedded
from ditlab.networks.costs import parameter_count

WARM = 3  # passes before timing starts: the first ones find cold caches
LONG = 1.0  # seconds of timed passes after which FEW are enough
FEW = 3


@dataclass
class Part:
    """One module in a forward pass. Shapes include the batch; ``times`` holds milliseconds, one value a pass."""

    name: str
    kind: str
    takes: list[list[int]]
    gives: list[int]
    parameters: int
    times: list[float] = field(default_factory=list)
    milliseconds: float = 0.0  # in the pass of median duration, so that the parts add up


def measure_parts(modules: dict[str, nn.Module], forward: Callable[[], Any], passes: int = 9) -> list[Part]:
    """Run ``forward`` and measure each of the ``modules``, in the order in which they are first entered.

    There are so many timed ``passes`` after some to warm up, fewer if they take long; the one of median duration is
    reported.
    """
    device = next((p.device.type for module in modules.values() for p in module.parameters()), "cpu")
    synchronise = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    parts: dict[str, Part] = {}
    started: dict[str, float] = {}
    order: dict[str, None] = {}  # a set that keeps its order

    def before(name: str) -> Any:
        def hook(*_: Any) -> None:
            order.setdefault(name)
            synchronise()
            started[name] = time.perf_counter()

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if output is None:  # such as the labels of a network without labels
                return
            synchronise()
            elapsed = 1e3 * (time.perf_counter() - started[name])
            if name not in parts:
                given = [x.vector if isinstance(x, Embedded) else x for x in inputs]
                takes = [list(x.shape) for x in given if isinstance(x, Tensor)]
                parts[name] = Part(name, type(module).__name__, takes, _shape(output), parameter_count(module))
            parts[name].times[-1:] = [(parts[name].times or [0.0])[-1] + elapsed]

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        for _ in range(WARM):
            forward()
        whole: list[float] = []
        for part in parts.values():
            part.times.clear()
        while len(whole) < passes and (len(whole) < FEW or sum(whole) < LONG):
            for part in parts.values():
                part.times.append(0.0)
            start = time.perf_counter()
            forward()
            whole.append(time.perf_counter() - start)
    middle = sorted(range(len(whole)), key=whole.__getitem__)[(len(whole) - 1) // 2]
    for part in parts.values():
        part.milliseconds = part.times[middle]
    return [parts[name] for name in order if name in parts]


def _shape(output: Any) -> list[int]:
    """Shape of a tensor; of nested tuples of tensors, such as a modulation, how many different ones and one's shape."""
    if isinstance(output, Tensor):
        return list(output.shape)
    leaves = {id(leaf): leaf for leaf in tensors_of(output)}
    return [len(leaves), *next(iter(leaves.values())).shape]


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, such as a modulation, in order."""
    if value is None:  # a gate that a modulation does not have
        return []
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in tensors_of(part)]
