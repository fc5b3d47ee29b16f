"""Look inside a network while it runs: attention maps and gates, by hooks that leave its output bit-identical."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditlab.inspection.branches import modulated_blocks
from ditlab.networks.dit import DiT
from ditlab.networks.layers import Attention, CrossAttention, ScaledDotProductAttention
from ditlab.networks.modulation import BlockModulation


class Record:
    """The recordings of a probe, by layer from 0, in fp32 and detached.

    Attributes:
        attention: layer → (B, h, N, N), or (B, chosen heads, chosen queries, N). Rows sum to 1. N counts all tokens of
            the sequence, also those that are not patches.
        cross: layer → (B, h, N, K), cross-attention to K tokens of conditions; rows sum to 1.
        gates: layer → {"attn": (B, D), "mlp": (B, D)}, if the kind of conditioning has gates.
        patches: which tokens of the sequence are patches; None for a network that has none.
        tokens, cross_tokens: in the latest pass, names of the tokens after the patches, such as ("time", "label"), and
            of the K tokens that cross-attention reads.

    With ``keep="all"`` each tensor is a list of tensors instead, one a forward pass.
    """

    def __init__(self, keep: Literal["last", "all"] = "last", patches: range | None = None) -> None:
        self.patches = patches
        self.tokens: tuple[str, ...] = ()
        self.cross_tokens: tuple[str, ...] = ()
        self.attention: dict[int, Any] = {}
        self.cross: dict[int, Any] = {}
        self.gates: dict[int, dict[str, Any]] = {}
        self._keep = keep

    def _store(self, where: dict[Any, Any], key: Any, value: Tensor) -> None:
        if self._keep == "all":
            where.setdefault(key, []).append(value)
        else:
            where[key] = value

    def _name_tokens(self, network: DiT, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Hook before a DiT's forward pass."""
        cond = named.get("cond", inputs[2] if len(inputs) > 2 else None)
        self.tokens = network.token_names(cond)
        self.cross_tokens = network.token_names(cond, network.context)

    def _gates_of(self, layer: int) -> Any:
        """A hook after the modulation of that layer."""

        def hook(_: nn.Module, __: tuple[Any, ...], modulation: BlockModulation) -> None:
            branches = self.gates.setdefault(layer, {})
            for branch, part in modulation._asdict().items():
                self._store(branches, branch, part.gate.detach().float())

        return hook


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

    The map is recomputed as softmax(q kᵀ / √d) from the inputs of the attention module, only for the chosen layers,
    heads and queries; the output still comes from the fused kernel.

    Args:
        network: the uncompiled network (or a process around it).
        attention, gates: what to record.
        layers, heads, queries: which of them, None for all.
        keep: "last" keeps the latest forward pass, "all" a list of them.

    Raises:
        ValueError: a compiled network, whose hooks would not fire; a network without attention; an unknown layer.
    """
    if keep not in ("last", "all"):
        raise ValueError(f"keep={keep!r} must be 'last' or 'all'")
    refuse_compiled(network)
    attentions = attention_layers(network)
    crosses = [module.attention for module in network.modules() if isinstance(module, CrossAttention)]
    modulations = [block.modulation for block in modulated_blocks(network)]
    dit = next((module for module in network.modules() if isinstance(module, DiT)), None)
    if attention and not attentions:
        raise ValueError(f"{type(network).__name__} has no attention to record; pass attention=False")
    record = Record(keep, None if dit is None else dit.patches)

    def on_attention(where: dict[int, Any], layer: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            q, k, mask = inputs[0], inputs[1], inputs[3] if len(inputs) > 3 else None
            record._store(where, layer, attention_map(q, k, heads, queries, mask))

        return hook

    with ExitStack() as stack:
        if dit is not None:
            stack.callback(dit.register_forward_pre_hook(record._name_tokens, with_kwargs=True).remove)
        for where, modules in ((record.attention, attentions), (record.cross, crosses)) if attention else ():
            chosen = _chosen(layers, len(modules)) if modules else ()
            for layer in chosen:
                stack.callback(modules[layer].register_forward_hook(on_attention(where, layer)).remove)
        if gates and modulations:
            for layer in _chosen(layers, len(modulations)):
                stack.callback(modulations[layer].register_forward_hook(record._gates_of(layer)).remove)
        yield record


def attention_layers(network: nn.Module) -> list[ScaledDotProductAttention]:
    """The self-attention of a network, in order."""
    return [module.attention for module in network.modules() if isinstance(module, Attention)]


@torch.no_grad()
def attention_map(
    q: Tensor,
    k: Tensor,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ / √d) in fp32: (B, h, N, d), (B, h, M, d) → (B, h, N, M), for the chosen heads and queries.

    Keys where the mask, (B, 1, 1, M) or (B, 1, N, M), is False get no attention.
    """
    q, k = q.detach().float(), k.detach().float()
    if heads is not None:
        q, k = q[:, list(heads)], k[:, list(heads)]
    if queries is not None:
        q = q[:, :, list(queries)]
        if mask is not None and mask.shape[2] != 1:
            mask = mask[:, :, list(queries)]
    with torch.autocast(q.device.type, enabled=False):
        products = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return torch.softmax(products if mask is None else products.masked_fill(~mask, -torch.inf), dim=-1)


def _chosen(layers: Sequence[int] | None, count: int) -> Sequence[int]:
    if layers is None:
        return range(count)
    for layer in layers:
        if not 0 <= layer < count:
            raise ValueError(f"layer {layer} is not there: this network has layers 0 to {count - 1}")
    return layers


def refuse_compiled(network: nn.Module) -> None:
    """Raise ``ValueError`` if the network or a part of it is compiled, for hooks would not fire in it."""
    for module in network.modules():
        compiled = isinstance(module, torch._dynamo.OptimizedModule)
        if compiled or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                "hooks do not fire in a compiled network: probe the module that was given to torch.compile"
            )
