"""Training steps to time: any network in a minimal loop, and the loop of ``ditlab train``."""

from __future__ import annotations

from collections.abc import Callable
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
FOREVER = 10**7  # more steps than are ever run


class Entry(NamedTuple):
    """A network, and how it is run: "eager", "compiled", or "default", without any options.

    The peer's default is eager; that of ``ditlab`` has its own loop.
    """

    contestant: str
    way: str
    dtype: str

    @property
    def is_our_default(self) -> bool:
        """Whether it is ``ditlab`` without options."""
        return (self.contestant, self.way) == (OURS, DEFAULT)


class RandomData:
    """The same batch every time, so that data cost next to nothing."""

    def __init__(self, size: Size, device: torch.device | str = "cpu") -> None:
        self.shape: tuple[int, ...] = size.shape
        self.conditions: Conditions = labelled(size.num_classes)
        self.x0 = torch.randn(size.batch, *size.shape, device=device)
        self.label = torch.randint(size.num_classes, (size.batch,), device=device)

    def batch(self, seed: int, position: int, size: int) -> Batch:  # noqa: ARG002 - as a Dataset has it
        """The batch."""
        return Batch(self.x0, {"label": self.label})


def predicting(entry: Contestant, way: str) -> Predict:
    """The contestant's prediction, compiled or not."""
    return entry.adapt(torch.compile(entry.network, dynamic=False) if way == COMPILED else entry.network)


class PlainLoop:
    """A network in a minimal loop: flow matching and ``torch.optim.AdamW``, nothing else.

    All steps, eager or compiled, in fp32 or bf16, share the weights and the optimizer.
    """

    def __init__(self, entry: Contestant, size: Size, device: torch.device) -> None:
        self.entry, self.size, self.device = entry, size, device
        entry.network.to(device).train()
        self.data = RandomData(size, device)
        self.optimizer = torch.optim.AdamW(entry.network.parameters(), lr=1e-4)

    def step(self, way: str, dtype: str) -> Work:
        """A function that takes one optimizer step, and frees the gradients."""
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
    """The configuration of ``ditlab train`` for a network and batches of this size."""
    if size.published is None:
        network = DiTConfig(patch_size=size.patch_size, dim=size.dim, depth=size.depth, heads=size.heads, mlp_ratio=4.0)
        config = Config(data=DigitsData(), network=network)
    else:
        config = latents(ANY_STORE, size.published)
    changes = {"batch_size": size.batch, "accumulate": size.batch // size.part, "device": device.type}
    return config.model_copy(update=changes)


def as_trained(config: Config, dataset: Dataset) -> Config:
    """The configuration with the choices of ``ditlab train`` on this machine, except for the number of threads."""
    device, config = resolve_device(config.device), resolved(config)
    if config.compile != "auto":
        return config
    return config.model_copy(update={"compile": compiled.pays(config, dataset) and compiled.why_not(device) is None})


def default_contestant(size: Size) -> Contestant:
    """The network of ``default_config``."""
    config = default_config(size, torch.device("cpu"))
    return our_contestant(build_network(config, External(size.shape, labelled(size.num_classes))))


def resolved_default(size: Size, device: torch.device) -> Config:
    """``default_config`` with the choices for this machine."""
    return as_trained(default_config(size, device), External(size.shape, labelled(size.num_classes)))


def default_step(size: Size, device: torch.device, compile: bool | None = None) -> Work:
    """One step of the loop of ``ditlab train``; ``compile`` overrides its choice to compile."""
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
    """All entries of these contestants, except for the defaults.

    As compiling takes minutes, it is done only in the precision that ``ditlab`` trains in here, and not for the plain
    transformer. bf16 is left out if it is emulated.
    """
    own = resolve_precision("auto", device)
    dtypes = ["fp32"] if "fp32" in size.dtypes and emulates_bf16(device) else size.dtypes
    eager = [Entry(name, EAGER, dtype) for dtype in dtypes for name in names]
    return eager + [Entry(name, COMPILED, own) for name in names if COMPILED in ways and name != PLAIN]


def use_measured_kernels(device: torch.device) -> None:
    """Use the kernels measured to be fastest on this machine, as ``ditlab.load`` does."""
    if device.type == "cpu":
        kernels.use(profile().kernels)


def emulates_bf16(device: torch.device) -> bool:
    """Whether a CPU multiplies bf16 more slowly than fp32."""
    return device.type == "cpu" and profile().bf16 < 1


def training_turns(
    entries: list[Entry], size: Size, device: torch.device, refused: dict[Any, str] | None = None
) -> dict[Entry, Work]:
    """The steps of these entries; ``refused`` as of ``interleaved``."""

    def plain(own: list[Entry]) -> dict[Entry, Work]:
        loop = PlainLoop(contestant(own[0].contestant, size), size, device)
        return {entry: loop.step(entry.way, entry.dtype) for entry in own}

    return turns_of(entries, refused, lambda: default_step(size, device), plain)


def turns_of(
    entries: list[Entry],
    refused: dict[Any, str] | None,
    default: Callable[[], Work],
    plain: Callable[[list[Entry]], dict[Entry, Work]],
) -> dict[Entry, Work]:
    """Build the work of each entry: our default first, as it discards compiled code, then one contestant at a time."""
    turns: dict[Entry, Work] = {}
    for entry in entries:
        if entry.is_our_default:
            with refusing([entry], refused):
                turns[entry] = default()
    for name in dict.fromkeys(entry.contestant for entry in entries):
        own = [entry for entry in entries if entry.contestant == name and not entry.is_our_default]
        with refusing(own, refused):
            turns |= plain(own) if own else {}
    return {entry: turns[entry] for entry in entries if entry in turns}
