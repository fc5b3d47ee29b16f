"""Training steps to time: any network in the loop that one writes first, and the loop of ``ditlab train``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditlab.bench.contestants import OURS, PLAIN, Contestant, Predict, contestant, our_contestant
from ditlab.bench.rounds import Work, refusing
from ditlab.bench.sizes import Size
from ditlab.config import Config, DigitsData, DiTConfig
from ditlab.core.device import autocast, resolve_device
from ditlab.data.conditions import Conditions, labelled
from ditlab.data.dataset import Batch, Dataset, External
from ditlab.machine.profile import profile
from ditlab.machine.resolve import computing_as, resolve_precision, resolved
from ditlab.networks import kernels
from ditlab.recipes import ANY_STORE, latents
from ditlab.runs.build import build_network
from ditlab.training import compilation as compiled
from ditlab.training.loop import Step, TrainState, train

EAGER, COMPILED, DEFAULT = "eager", "compiled", "default"
FOREVER = 10**7  # steps that are not reached


class Entry(NamedTuple):
    """Which network is run, and how: "eager", "compiled", or "default", as one gets it who chooses nothing.

    The default of the peer is eager; that of ``ditlab`` has its own loop.
    """

    contestant: str
    way: str
    dtype: str

    @property
    def is_our_default(self) -> bool:
        """Whether it is what ``ditlab`` itself does."""
        return (self.contestant, self.way) == (OURS, DEFAULT)


class RandomData:
    """The same batch again and again, so that all pay the same for their data: almost nothing."""

    def __init__(self, size: Size, device: torch.device | str = "cpu") -> None:
        self.shape: tuple[int, ...] = size.shape
        self.conditions: Conditions = labelled(size.num_classes)
        self.x0 = torch.randn(size.batch, *size.shape, device=device)
        self.label = torch.randint(size.num_classes, (size.batch,), device=device)

    def batch(self, seed: int, position: int, size: int) -> Batch:  # noqa: ARG002 - as a Dataset has it
        """The batch."""
        return Batch(self.x0, {"label": self.label})


def predicting(entry: Contestant, way: str) -> Predict:
    """The contestant's prediction, as it is or compiled."""
    return entry.adapt(torch.compile(entry.network, dynamic=False) if way == COMPILED else entry.network)


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
        """One optimizer step, as something to call; it leaves no gradients, which others could use the memory of."""
        predict, parts = predicting(self.entry, way), self.size.batch // self.size.part

        def loss_of(x0: Tensor, label: Tensor) -> Tensor:
            t, noise = torch.rand(len(x0), device=self.device), torch.randn_like(x0)
            s = t[:, None, None, None]
            with autocast(dtype, self.device):
                guess = predict((1 - s) * x0 + s * noise, t, label)
            return (guess - (noise - x0)).square().mean() / parts

        def step() -> None:
            for x0, label in zip(self.data.x0.chunk(parts), self.data.label.chunk(parts), strict=True):
                loss_of(x0, label).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()

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
    """The configuration with what ``ditlab train`` would decide here, but for the number of threads."""
    device, config = resolve_device(config.device), resolved(config)
    if config.compile != "auto":
        return config
    return config.model_copy(update={"compile": compiled.pays(config, dataset) and compiled.why_not(device) is None})


def default_contestant(size: Size) -> Contestant:
    """The network of ``default_config``: our geometry with the peer's MLP ratio."""
    config = default_config(size, torch.device("cpu"))
    return our_contestant(build_network(config, External(size.shape, labelled(size.num_classes))))


def resolved_default(size: Size, device: torch.device) -> Config:
    """``default_config`` as it would be trained here."""
    return as_trained(default_config(size, device), External(size.shape, labelled(size.num_classes)))


def default_step(size: Size, device: torch.device, compile: bool | None = None) -> Work:
    """One turn of the loop of ``ditlab train``; compiled or not as said, if it is."""
    config, data = resolved_default(size, device), RandomData(size)
    changes = {"steps": FOREVER, "average_every": FOREVER} | ({} if compile is None else {"compile": compile})
    config = config.model_copy(update=changes)
    with computing_as(config):
        state = TrainState(config, data)
        loop = train(state, data)

    def step() -> Step:
        with computing_as(config):
            done = next(loop)
        state.optimizers.zero_grad()
        return done

    return step


def entries_of(names: list[str], size: Size, ways: list[str], device: torch.device) -> list[Entry]:
    """Everything that is timed of these contestants, but for the defaults.

    Compiling takes minutes: it is done in the dtype alone that ``ditlab`` trains in here, and not for the plain
    transformer. bf16 is left out where it is emulated (``emulates_bf16``).
    """
    own = resolve_precision("auto", device)
    dtypes = ["fp32"] if "fp32" in size.dtypes and emulates_bf16(device) else size.dtypes
    eager = [Entry(name, EAGER, dtype) for dtype in dtypes for name in names]
    return eager + [Entry(name, COMPILED, own) for name in names if COMPILED in ways and name != PLAIN]


def use_measured_kernels(device: torch.device) -> None:
    """All of ours compute with what this machine was measured to do best, as in ``ditlab.load``."""
    if device.type == "cpu":
        kernels.use(profile().kernels)


def emulates_bf16(device: torch.device) -> bool:
    """Whether a CPU multiplies bf16 so slowly that nobody would ask for it."""
    return device.type == "cpu" and profile().bf16 < 1


def training_turns(
    entries: list[Entry], size: Size, device: torch.device, refused: dict[Any, str] | None = None
) -> dict[Entry, Work]:
    """Steps of these; ``refused`` as of ``interleaved``.

    The default's is built before anything is compiled, for it forgets what was.
    """
    turns: dict[Entry, Work] = {}
    plain = [entry for entry in entries if not entry.is_our_default]
    for entry in entries:
        if entry.is_our_default:
            with refusing([entry], refused):
                turns[entry] = default_step(size, device)
    for name in dict.fromkeys(entry.contestant for entry in plain):
        own = [entry for entry in plain if entry.contestant == name]
        with refusing(own, refused):
            loop = PlainLoop(contestant(name, size), size, device)
            turns |= {entry: loop.step(entry.way, entry.dtype) for entry in own}
    return {entry: turns[entry] for entry in entries if entry in turns}
