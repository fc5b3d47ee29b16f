"""What a network costs in parameters, multiply-accumulates and bytes, counted without allocating or computing."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(network: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; fixed tables (sine-cosine positions) count unless ``trainable_only``."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable_only)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device: shapes without values, for counting."""
    with torch.device("meta"):
        return build()


def as_shapes(network: nn.Module) -> nn.Module:
    """A copy of a network on the meta device: its shapes without its values."""
    return _copied(network, lambda tensor: tensor.to("meta"))


def _copied(network: nn.Module, tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Any] = {id(p): nn.Parameter(tensor(p), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo | {id(buffer): tensor(buffer) for buffer in network.buffers()})


def multiply_accumulates(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass on one sample of ``shape``.

    They are those of matrix products, convolutions, both products of attention, and modulation and gating (one for each
    value). The "Gflops" of Peebles & Xie 2023, table 1, have this unit; floating-point operations are twice as many.
    """
    return _counted(network, shape).get_total_flops() // 2


def multiply_accumulates_by_module(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """``multiply_accumulates`` of each module by its name; "" for the whole network."""
    root = type(network).__name__
    return {
        name.removeprefix(root).removeprefix("."): sum(counts.values()) // 2
        for name, counts in _counted(network, shape).get_flop_counts().items()
        if name.startswith(root)
    }


def _counted(network: nn.Module, shape: tuple[int, ...]) -> FlopCounterMode:
    network = as_shapes(network).requires_grad_(False)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addcmul: _addcmul_operations})
    with counter:
        network(*_inputs(network, shape, 1))
    return counter


def _inputs(
    network: nn.Module, shape: tuple[int, ...], batch_size: int, device: str = "meta"
) -> tuple[Tensor, Tensor, Any]:
    """x, t and, for a network without a null label, labels: shapes without values."""
    x, t = torch.empty(batch_size, *shape, device=device), torch.empty(batch_size, device=device)
    needs_label = getattr(network, "num_classes", None) is not None and not getattr(network, "null_label", True)
    return x, t, {"label": torch.empty(batch_size, dtype=torch.int64, device=device)} if needs_label else None


def _addcmul_operations(*_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * out_shape.numel()


class Activations(NamedTuple):
    """Bytes that a forward pass keeps for its backward pass; ``recomputed`` if the backward pass recomputes each block.

    Then the inputs of all blocks are kept, everything outside of blocks, and one block's own, the largest, at a time.
    """

    kept: int
    recomputed: int


def activation_bytes(
    network: nn.Module, shape: tuple[int, ...], batch_size: int, precision: str = "fp32"
) -> Activations:
    """The bytes that one forward pass keeps for its backward pass, without the weights; each tensor counts once.

    They are counted on fake CPU tensors. Unless ``precision`` is "fp32", autocast in bf16 (fp16 takes as much) also
    keeps copies of the weights.
    """
    kept: dict[int, tuple[Tensor, int, int]] = {}  # the tensor (kept alive, so its id stays unique), bytes, block
    inputs: dict[int, tuple[Tensor, int]] = {}
    block = OUTSIDE

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept.setdefault(storage._cdata, (tensor, storage.nbytes(), block))
        return tensor

    def enter(number: int, tokens: Tensor) -> None:
        nonlocal block
        block = number
        inputs[number] = (tokens, tokens.untyped_storage().nbytes())

    def leave() -> None:
        nonlocal block
        block = OUTSIDE

    with FakeTensorMode():
        network = _copied(network, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        for number, module in enumerate(getattr(network, "blocks", ())):
            module.register_forward_pre_hook(lambda _, args, number=number: enter(number, args[0]))
            module.register_forward_hook(lambda *_: leave())
        with (
            torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"),
        ):
            network(*_inputs(network, shape, batch_size, "cpu"))
    each: Counter[int] = Counter()
    for _, size, owner in kept.values():
        each[owner] += size
    total, outside = each.total(), each.pop(OUTSIDE, 0)
    again = outside + sum(size for _, size in inputs.values()) + max(each.values(), default=0)
    return Activations(total, min(total, again))


OUTSIDE = -1  # the number of what belongs to no block
