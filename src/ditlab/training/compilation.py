"""Training code made by torch.compile: when it pays, whether it can be made here, and how to run without it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from ditlab.config import Config, DiTConfig
from ditlab.core.device import resolve_device
from ditlab.core.disk import HOST, cache_folder, write_atomically
from ditlab.core.errors import InputError, first_line
from ditlab.data.dataset import Dataset
from ditlab.networks.costs import multiply_accumulates, on_meta
from ditlab.runs.build import build_network
from ditlab.training.sharding import blocks_of

PAYS_FROM = 5e12  # floating-point operations of a training, about a minute on two cores: compiling takes some 10 s
COMPUTED = 6  # floating-point operations of a step for each multiply-accumulate of a forward pass


def pays(config: Config, dataset: Dataset, world: int = 1) -> bool:
    """Whether compiled code is chosen where nothing was said: for a DiT on a CPU, alone, in a training that is long.

    A function of configuration and device, so that a training begun again computes the same numbers.
    """
    if not is_whole(config, world):
        return False
    macs = multiply_accumulates(on_meta(lambda: build_network(config, dataset)), dataset.shape)
    return COMPUTED * macs * config.batch_size * config.steps >= PAYS_FROM


def why_not(device: torch.device) -> str | None:
    """Why torch cannot compile here, or None; on a CPU it needs a C++ compiler and Python's headers."""
    try:
        torch.compile(_tried, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # whatever is wanting: torch has no common type for it
        return first_line(error)
    return None


def _tried(x: Tensor) -> Tensor:
    return (x + 1).square()


def announcement(config: Config) -> str:
    """What is said while it is compiled, with the seconds that this took here the last time, if they are known."""
    try:
        usual = float(_notes(config).read_text())
    except (OSError, InputError, ValueError):
        return "compiling the network"
    return f"compiling the network, about {max(1, round(usual))} s"


def remember(config: Config, seconds: float) -> None:
    """Note how long it took, for ``announcement``; nothing depends on it."""
    with suppress(OSError, InputError):
        file = _notes(config)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda path: path.write_text(f"{seconds:.1f}\n"))


def _notes(config: Config) -> Path:
    """A file for all that decides how long it takes, about."""
    about = (HOST, torch.__version__, config.network, config.precision, config.batch_size // config.accumulate)
    return cache_folder() / "compiled" / hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def compile_network(network: nn.Module, whole: bool) -> None:
    """Compile it as a whole, or each block by itself, of which one compilation serves all.

    What was compiled before is forgotten, and made again where it is still used: torch counts the versions of one code,
    and after the eighth would run it as it is without a word.
    """
    torch._dynamo.reset()
    _tell_instructions_apart()
    if whole:
        network.compile(dynamic=False)
        return
    for module in blocks_of(network) or [network]:
        module.compile()


def _tell_instructions_apart() -> None:
    """Name the width of this processor's vectors, which torch would choose itself, so that its cache is kept by it.

    Without that torch 2.13 runs on one processor what it compiled for another that shares the cache, and gets NaN.
    """
    from torch._inductor import config as inductor  # a second to import, for trainings that are compiled alone
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.exc import InvalidCxxCompiler

    with suppress(InvalidCxxCompiler):  # there is none; who compiles finds out, too
        inductor.cpp.simdlen = inductor.cpp.simdlen or pick_vec_isa().bit_width() or None


def is_whole(config: Config, world: int = 1) -> bool:
    """Whether a network is compiled as a whole, as it is where that was measured: ``pays`` but for the length."""
    return (
        world == 1
        and not config.recompute
        and config.process.compiles
        and not config.auxiliary
        and isinstance(config.network, DiTConfig)
        and resolve_device(config.device).type == "cpu"
    )


def leave_uncompiled(network: nn.Module) -> None:
    """Run it as it was written from now on."""
    for module in network.modules():
        module._compiled_call_impl = None


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Run a network as it was written: compiled code calls no hooks that were added later."""
    compiled = {module: module._compiled_call_impl for module in network.modules() if module._compiled_call_impl}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, code in compiled.items():
            module._compiled_call_impl = code
