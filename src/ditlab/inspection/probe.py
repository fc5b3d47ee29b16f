"""Look inside a network while it runs: attention maps and gates, by hooks that leave its output bit-identical."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditlab.networks.conditioning import AdaLNZero, BlockModulation
from ditlab.networks.layers import ScaledDotProductAttention


class Record:
    """What a probe saw, by layer from 0, in fp32 and detached.

    Attributes:
        attention: layer → (B, h, N, N), or (B, heads asked for, queries asked for, N). Rows sum to 1.
        gates: layer → {"attn": (B, D), "mlp": (B, D)}.

    With ``keep="all"`` each tensor is a list of tensors instead, one a forward pass.
    """

    def __init__(self, keep: Literal["last", "all"] = "last") -> None:
        self.attention: dict[int, Any] = {}
        self.gates: dict[int, dict[str, Any]] = {}
        self._keep = keep

    def _store(self, where: dict[Any, Any], key: Any, value: Tensor) -> None:
        if self._keep == "all":
            where.setdefault(key, []).append(value)
        else:
            where[key] = value


@contextmanager
def probe(
    network: nn.Module,
    attention: bool = True,
    gates: bool = True,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    keep: Literal["last", "all"] = "last",
) -> Iterator[Record]:
    """Record attention maps and gates of every forward pass within the ``with`` block.

    The map is recomputed as softmax(q kᵀ / √d) from the inputs of the attention module, only for the layers, heads and
    queries asked for; the fused kernel still makes the output.

    Args:
        network: the uncompiled network (or a process around it).
        attention, gates: what to record.
        layers, heads, queries: which of them, None for all.
        keep: "last" keeps the latest forward pass, "all" a list of them.

    Raises:
        ValueError: a compiled network, whose hooks would not fire; a network or a layer that is not there.
    """
    if keep not in ("last", "all"):
        raise ValueError(f"keep={keep!r} must be 'last' or 'all'")
    _refuse_compiled(network)
    attentions = attention_layers(network)
    modulations = [m for m in network.modules() if isinstance(m, AdaLNZero)]
    if attention and not attentions:
        raise ValueError(f"{type(network).__name__} has no attention to record; pass attention=False")
    record = Record(keep)

    def on_attention(layer: int) -> Any:
        def hook(_: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], __: Tensor) -> None:
            record._store(record.attention, layer, attention_map(qkv[0], qkv[1], heads, queries))

        return hook

    def on_gates(layer: int) -> Any:
        def hook(_: nn.Module, __: tuple[Tensor, ...], modulation: BlockModulation) -> None:
            branches = record.gates.setdefault(layer, {})
            for branch, part in modulation._asdict().items():
                record._store(branches, branch, part.gate.detach().float())

        return hook

    handles = []
    try:
        if attention:
            chosen = _chosen(layers, len(attentions))
            handles += [attentions[layer].register_forward_hook(on_attention(layer)) for layer in chosen]
        if gates and modulations:
            chosen = _chosen(layers, len(modulations))
            handles += [modulations[layer].register_forward_hook(on_gates(layer)) for layer in chosen]
        yield record
    finally:
        for handle in handles:
            handle.remove()


def attention_layers(network: nn.Module) -> list[ScaledDotProductAttention]:
    """The attention modules of a network, in order."""
    return [module for module in network.modules() if isinstance(module, ScaledDotProductAttention)]


@torch.no_grad()
def attention_map(
    q: Tensor, k: Tensor, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
) -> Tensor:
    """softmax(q kᵀ / √d) in fp32: (B, h, N, d) twice → (B, h, N, N), rows and heads as asked for."""
    q, k = q.detach().float(), k.detach().float()
    if heads is not None:
        q, k = q[:, list(heads)], k[:, list(heads)]
    if queries is not None:
        q = q[:, :, list(queries)]
    with torch.autocast(q.device.type, enabled=False):
        return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)


def _chosen(layers: Sequence[int] | None, count: int) -> Sequence[int]:
    if layers is None:
        return range(count)
    for layer in layers:
        if not 0 <= layer < count:
            raise ValueError(f"layer {layer} is not there: this network has layers 0 to {count - 1}")
    return layers


def _refuse_compiled(network: nn.Module) -> None:
    for module in network.modules():
        if (
            isinstance(module, torch._dynamo.OptimizedModule)
            or getattr(module, "_compiled_call_impl", None) is not None
        ):
            raise ValueError(
                "hooks do not fire in a compiled network: probe the module that was given to torch.compile"
            )
