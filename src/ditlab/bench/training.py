"""Training steps to time: any network in the loop that one writes first, and the loop of ``ditlab train``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ditlab.bench.contestants import OURS, PLAIN, Contestant, contestant
from ditlab.bench.rounds import Work
from ditlab.bench.sizes import Size
from ditlab.build import resolve_device, resolve_precision
from ditlab.config import Config, DigitsData, DiTConfig
from ditlab.data.datasets import Batch, Dataset
from ditlab.recipes import ANY_STORE, latents
from ditlab.training import compiled
from ditlab.training.loop import TrainState, train

EAGER, COMPILED, DEFAULT = "eager", "compiled", "default"
FOREVER = 10**7  # steps that are not reached


class Entry(NamedTuple):
    """Which network is run, and how: "eager", "compiled", or "default", as ``ditlab`` runs it if not told otherwise."""

    contestant: str
    way: str
    dtype: str


class RandomData:
    """The same batch again and again, so that all pay the same for their data: almost nothing."""

    def __init__(self, size: Size, device: torch.device | str = "cpu") -> None:
        self.shape: tuple[int, ...] = size.shape
        self.num_classes: int | None = size.num_classes
        self.x0 = torch.randn(size.batch, *size.shape, device=device)
        self.label = torch.randint(size.num_classes, (size.batch,), device=device)

    def batch(self, seed: int, position: int, size: int) -> Batch:  # noqa: ARG002 - as a Dataset has it
        """The batch."""
        return Batch(self.x0, {"label": self.label})


class PlainLoop:
    """A network in the loop that one writes first: flow matching, ``torch.optim.AdamW``, nothing else.

    Its forms, eager or compiled, in fp32 or bf16, share one set of weights and one optimizer.

    Args:
        entry: the network.
        size: of the network and its batches.
        device: where it runs.
    """

    def __init__(self, entry: Contestant, size: Size, device: torch.device) -> None:
        self.entry, self.size, self.device = entry, size, device
        entry.network.to(device).train()
        self.data = RandomData(size, device)
        self.optimizer = torch.optim.AdamW(entry.network.parameters(), lr=1e-4)

    def step(self, way: str, dtype: str) -> Work:
        """One optimizer step, as something to call."""
        call = self.entry.network if way == EAGER else torch.compile(self.entry.network, dynamic=False)
        predict, parts = self.entry.adapt(call), self.size.batch // self.size.part

        def loss_of(x0: Tensor, label: Tensor) -> Tensor:
            t, noise = torch.rand(len(x0), device=self.device), torch.randn_like(x0)
            s = t[:, None, None, None]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bf16"):
                guess = predict((1 - s) * x0 + s * noise, t, label)
            return (guess - (noise - x0)).square().mean() / parts

        def step() -> None:
            self.optimizer.zero_grad()
            for x0, label in zip(self.data.x0.chunk(parts), self.data.label.chunk(parts), strict=True):
                loss_of(x0, label).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

        return step


def default_config(size: Size, device: torch.device) -> Config:
    """What ``ditlab train`` would train such a network with, on batches of this size."""
    if size.published is None:
        network = DiTConfig(patch_size=size.patch_size, dim=size.dim, depth=size.depth, heads=size.heads, mlp_ratio=4.0)
        config = Config(data=DigitsData(), network=network)
    else:
        config = latents(ANY_STORE, size.published)
    changes = {
        "batch_size": size.batch,
        "accumulate": size.batch // size.part,
        "device": device.type,
    }
    return config.model_copy(update=changes)


def as_trained(config: Config, dataset: Dataset) -> Config:
    """The configuration with what ``ditlab train`` would decide here: precision, and whether to compile."""
    device = resolve_device(config.device)
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    if config.compile != "auto":
        return config
    return config.model_copy(update={"compile": compiled.pays(config, dataset) and compiled.why_not(device) is None})


def default_step(size: Size, device: torch.device) -> tuple[Entry, Work]:
    """One turn of the loop of ``ditlab train``, and what it turned out to be."""
    config, data = default_config(size, device), RandomData(size)
    config = as_trained(config, data).model_copy(update={"steps": FOREVER, "average_every": FOREVER})
    state = TrainState(config, data)
    loop = train(state, data)
    return Entry(OURS, DEFAULT, config.precision), lambda: next(loop)


def training_entries(names: list[str], dtypes: list[str], ways: list[str]) -> list[Entry]:
    """Everything that is timed in the plain loop; the plain transformer is not compiled, for that takes minutes."""
    entries = [Entry(name, way, dtype) for way in ways for dtype in dtypes for name in names]
    return [entry for entry in entries if (entry.contestant, entry.way) != (PLAIN, COMPILED)]


def training_turns(entries: list[Entry], size: Size, device: torch.device) -> dict[Entry, Work]:
    """Steps of these, and the default's."""
    names = dict.fromkeys(entry.contestant for entry in entries)
    loops = {name: PlainLoop(contestant(name, size), size, device) for name in names}
    turns = {entry: loops[entry.contestant].step(entry.way, entry.dtype) for entry in entries}
    default, work = default_step(size, device)
    return {**turns, default: work}
