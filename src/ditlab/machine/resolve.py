"""Replace "auto" in a configuration by this machine's fastest choices, so that a run continues as it began."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from ditlab.config import Config, DiTConfig, KernelsConfig, MLPConfig, MuonConfig
from ditlab.core.device import accelerator_precision, multiplies_bf16, resolve_device
from ditlab.machine.profile import in_words, profile
from ditlab.machine.threads import limit, quickest, threads
from ditlab.networks import kernels

BUSY = 2.0  # speed-up by fewer threads that is worth a message


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve ``"auto"``: the faster precision measured on a CPU, ``accelerator_precision`` on other devices."""
    if precision != "auto":
        return precision
    return profile().precision if device.type == "cpu" else accelerator_precision(device)


def resolved(config: Config) -> Config:
    """The configuration with "auto" and None replaced by this machine's choices, except for threads and compiling."""
    device = resolve_device(config.device)
    update: dict[str, object] = {"precision": resolve_precision(config.precision, device)}
    if isinstance(config.optimizer, MuonConfig) and config.optimizer.precision == "auto":
        precision = profile().muon if device.type == "cpu" else "bf16" if multiplies_bf16(device) else "fp32"
        update["optimizer"] = config.optimizer.model_copy(update={"precision": precision})
    if config.kernels is None and device.type == "cpu":
        update["kernels"] = KernelsConfig(**profile().kernels._asdict())
    return config.model_copy(update=update)


def settled(config: Config, shape: tuple[int, ...], world: int = 1) -> tuple[Config, list[str]]:
    """``resolved``, with the currently fastest number of threads, and lines that report the choices.

    Args:
        config: as requested, or as recorded in a run.
        shape: shape of a sample.
        world: number of training processes, all on this machine unless LOCAL_WORLD_SIZE says otherwise.
    """
    asked, config = config, resolved(config)
    if resolve_device(config.device).type != "cpu":
        return config, []
    most = max(1, limit() // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    best, gain = quickest(*products_of(config, shape, config.batch_size // world // config.accumulate), most)
    number = best if asked.threads is None else min(asked.threads, most)
    return config.model_copy(update={"threads": number}), list(_lines(asked, config, number, best, gain))


def _lines(asked: Config, config: Config, number: int, best: int, gain: float) -> Iterator[str]:
    """The choices, and better ones; ``gain`` is the speed-up of the best number of threads over all threads."""
    measured = profile()
    muon = ""
    if isinstance(config.optimizer, MuonConfig):
        muon = f", Muon in {config.optimizer.precision} ({in_words(measured.muon_bf16, 'bf16')} for it)"
    noun = "thread" if number == 1 else "threads"
    yield f"{number} {noun}, {config.precision} products ({in_words(measured.bf16, 'bf16')} here){muon}"
    if asked.threads is not None and number < asked.threads:
        yield f"{asked.threads} threads were requested, but only {number} can run at once"
    if gain > BUSY and number == best:
        yield f"other work keeps the processor busy: more threads would be {gain:.0f} times slower"
    elif gain > BUSY and number > best:
        yield f"other work keeps the processor busy: --threads {best} would be {gain:.0f} times as fast"
    elif number < best:
        yield f"this run uses {number} of {best} threads; --resume with --threads {best} uses them all"
    if asked.precision == "bf16" and measured.bf16 < 1:
        yield f"{in_words(measured.bf16, 'bf16')} on this processor: a new run is faster with --precision fp32"


def products_of(config: Config, shape: tuple[int, ...], batch: int) -> tuple[int, int]:
    """Approximate number of rows and width of a network's products, for ``quickest``."""
    match config.network:
        case DiTConfig(patch_size=patch, dim=dim):
            return batch * math.prod(side // patch for side in shape[1:]), dim
        case MLPConfig(hidden=hidden):
            return batch, hidden
    return batch * math.prod(shape[1:]), 64


@contextmanager
def computing_as(config: Config) -> Iterator[None]:
    """Use the threads and kernels of a settled configuration within the block."""
    chosen = config.kernels
    with (
        nullcontext() if config.threads is None else threads(config.threads),
        nullcontext() if chosen is None else kernels.using(kernels.Kernels(**chosen.model_dump())),
    ):
        yield


def use_quickest(config: Config, shape: tuple[int, ...], batch: int, device: torch.device) -> None:
    """Set this program's number of threads to the currently fastest one for running a network.

    Args:
        config: the network's configuration.
        shape: shape of a sample.
        batch: number of samples at a time.
        device: device of the network; on a GPU the threads stay as they are.
    """
    if device.type == "cpu":
        torch.set_num_threads(quickest(*products_of(config, shape, batch), limit())[0])
