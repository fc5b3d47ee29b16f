"""How a network is spread over processes, and how its blocks run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class Replicated(DistributedDataParallel):
    """A network whose weights all processes have, and whose gradients are averaged; else as the network itself."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def replicate(network: nn.Module) -> nn.Module:
    """The network for the loss, where every process has all weights."""
    with warnings.catch_warnings():  # the option's new name came after torch 2.10
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        return Replicated(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(network: nn.Module, device: torch.device) -> None:
    """Leave each process a share of every weight: FSDP2 gathers those of a block when it runs, and no earlier.

    Its blocks are sharded one by one, and so are its other parts, the input and output layers. Each is brought to the
    device for that, and leaves a share there: a device never holds more than the shares and one whole part.
    """
    from torch.distributed.device_mesh import init_device_mesh  # with FSDP they take a second to import
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nothing here writes into
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = blocks_of(network)
    parts = [module for name, module in network.named_children() if name != "blocks"] if blocks else []
    for module in [*blocks, *(part for part in parts if any(True for _ in part.parameters()))]:
        if not isinstance(module, nn.ModuleList):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # also the root: a mean of weights is taken of shares


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer; none for other networks."""
    blocks = getattr(network, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def accumulating(network: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Around one part of a batch: gradients are exchanged with those of its last part alone."""
    if isinstance(network, Replicated) and not last:
        return network.no_sync()
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP's
        cast("FSDPModule", network).set_requires_gradient_sync(last)
    return nullcontext()


def recompute_blocks(network: nn.Module) -> None:
    """Let blocks keep nothing for the backward pass but their inputs, and compute the rest there again.

    Raises:
        InputError: the network has no blocks.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise InputError("recompute=True: this network has no blocks to compute again; leave --recompute out")
    for block in blocks:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*arguments: Any) -> Any:  # blocks draw no random numbers, so no generator is to be put back
        return torch.utils.checkpoint.checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)

    return again
