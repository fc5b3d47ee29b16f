"""Change a network while it runs: switch parts off, flatten or narrow attention, hold its time. The weights stay.

An edit is a word; several edits are separated by blanks:

=====================  ===============================================================================================
``head:2.1``           head 1 of attention layer 2 is off: its part of softmax(q kᵀ / √d) v is 0
``uniform:2.1``        that head attends to all visible keys equally: it gives the mean of their v
``uniform:2``          all heads of layer 2 do
``local:2.1``          the patches of layer 2 see patches at most 1 row and 1 column away, and all tokens of conditions
``gate:3.attn``        the gate of block 3's attention is 0; ``gate:3.mlp``: that of its MLP
``block:3``            the output of block 3 is its input
``time:0.5``           the network is given t = 0.5 instead of the time of x_t, and an interval t − r (MeanFlow) of at
                       most 0.5, because r is never below 0
=====================  ===============================================================================================

``head`` takes precedence over ``uniform`` and ``local``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ditlab.core.errors import InputError
from ditlab.inspection.probe import refuse_compiled
from ditlab.inspection.statistics import within
from ditlab.networks.dit import DiT, DiTBlock
from ditlab.networks.layers import Attention
from ditlab.networks.modulation import BlockModulation

Kind = TypeVar("Kind", bound=nn.Module)

NUMBER = r"(0|[1-9]\d{0,3})"
GRAMMAR = re.compile(
    rf"head:{NUMBER}\.{NUMBER}|uniform:{NUMBER}(?:\.{NUMBER})?|local:{NUMBER}\.{NUMBER}|"
    rf"gate:{NUMBER}\.(attn|mlp)|block:{NUMBER}|time:(0|1|0\.\d{{1,6}})",
    re.ASCII,
)


@dataclass(frozen=True)
class Edits:
    """Changes to a network; layers, heads and blocks count from 0.

    Attributes:
        heads: (layer, head) that are off.
        uniform: (layer, head) with uniform attention; the head is None for all of a layer.
        local: (layer, radius): its patches see so many rows and columns away.
        gates: (block, "attn" or "mlp") whose gate is 0.
        blocks: blocks to skip.
        time: the time that the network is given instead of t, or None.
    """

    heads: frozenset[tuple[int, int]] = frozenset()
    uniform: frozenset[tuple[int, int | None]] = frozenset()
    local: frozenset[tuple[int, int]] = frozenset()
    gates: frozenset[tuple[int, str]] = frozenset()
    blocks: frozenset[int] = frozenset()
    time: float | None = None

    @classmethod
    def parse(cls, text: str) -> Edits:
        """The edits in a text such as ``"head:2.1 block:3"``; ``InputError`` if one is unknown, or two contradict."""
        found: dict[str, list[Any]] = {name: [] for name in ("head", "uniform", "local", "gate", "block", "time")}
        for word in text.split():
            if GRAMMAR.fullmatch(word) is None:
                raise InputError(
                    f"unknown edit {word[:40]!r}; use head:LAYER.HEAD, uniform:LAYER, uniform:LAYER.HEAD, "
                    "local:LAYER.RADIUS, gate:BLOCK.attn, gate:BLOCK.mlp, block:BLOCK or time:T, T from 0 to 1"
                )
            name, _, rest = word.partition(":")
            found[name].append(float(rest) if name == "time" else _place(rest))
        times = set(found["time"])
        layers = [layer for layer, _ in set(found["local"])]
        if len(times) > 1 or len(layers) > len(set(layers)):
            raise InputError("one time can be told, and one radius for each layer: give time:T and local:L.R once")
        return cls(
            heads=frozenset(found["head"]),
            uniform=frozenset(found["uniform"]),
            local=frozenset(found["local"]),
            gates=frozenset(found["gate"]),
            blocks=frozenset(block for block, _ in found["block"]),
            time=times.pop() if times else None,
        )

    def __str__(self) -> str:
        """The text that ``parse`` reads, in order."""
        words = [f"head:{layer}.{head}" for layer, head in sorted(self.heads)]
        places = sorted(self.uniform, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
        words += [f"uniform:{layer}" + ("" if head is None else f".{head}") for layer, head in places]
        words += [f"local:{layer}.{radius}" for layer, radius in sorted(self.local)]
        words += [f"gate:{block}.{branch}" for block, branch in sorted(self.gates)]
        words += [f"block:{block}" for block in sorted(self.blocks)]
        return " ".join(words + ([] if self.time is None else [f"time:{self.time:g}"]))


def _place(text: str) -> tuple[int, int | str | None]:
    """(layer, what of it), where the second may be absent."""
    first, _, second = text.partition(".")
    return int(first), int(second) if second.isdecimal() else second or None


@contextmanager
def intervened(network: nn.Module, edits: Edits | str) -> Iterator[None]:
    """Change the network inside the ``with`` block; afterwards its output is bit-identical to what it was.

    Args:
        network: a DiT, a U-Net (whose attention can be changed) or an MLP (whose time can), not compiled.
        edits: as above, or as a text.

    Raises:
        InputError: an unknown edit, or one of a part that the network lacks.
        ValueError: a compiled network, whose hooks would not fire.
    """
    edits = Edits.parse(edits) if isinstance(edits, str) else edits
    refuse_compiled(network)
    check_edits(network, edits)
    with ExitStack() as stack:
        for handle in _install(network, edits):
            stack.callback(handle.remove)
        yield


def single_edits(network: nn.Module) -> list[str]:
    """Every head, gate and block that can be switched off, one at a time."""
    words = [f"head:{i}.{head}" for i, layer in enumerate(_all(Attention, network)) for head in range(layer.heads)]
    for i, block in enumerate(_all(DiTBlock, network)):
        words += [f"gate:{i}.attn", f"gate:{i}.mlp"] if block.modulation.gated else []
        words.append(f"block:{i}")
    return words


def check_edits(network: nn.Module, edits: Edits) -> None:
    """Raise ``InputError`` for edits of a layer, a head, a block, gates or patches that the network does not have."""
    attentions, blocks, kind = _all(Attention, network), _all(DiTBlock, network), type(network).__name__
    for layer, head in {*edits.heads, *edits.uniform, *((layer, None) for layer, _ in edits.local)}:
        _need(layer, len(attentions), "attention layer", kind)
        if head is not None and head >= attentions[layer].heads:
            raise InputError(f"head {head} is not there: layer {layer} has heads 0 to {attentions[layer].heads - 1}")
    if edits.local and not isinstance(network, DiT):
        raise InputError(f"local attention is between patches, and a {kind} has none; use uniform:LAYER")
    for block in {*edits.blocks, *(block for block, _ in edits.gates)}:
        _need(block, len(blocks), "transformer block", kind)
    if any(not blocks[block].modulation.gated for block, _ in edits.gates):
        raise InputError("the blocks of this network have no gates; use block:BLOCK or head:LAYER.HEAD")


def _need(index: int, count: int, what: str, kind: str) -> None:
    if not count:
        raise InputError(f"{kind} has no {what}")
    if index >= count:
        raise InputError(f"{what} {index} is not there: this network has 0 to {count - 1}")


def _all(kind: type[Kind], network: nn.Module) -> list[Kind]:
    return [module for module in network.modules() if isinstance(module, kind)]


def _install(network: nn.Module, edits: Edits) -> Iterator[RemovableHandle]:
    """Set the hooks, one after the other."""
    attentions, blocks = _all(Attention, network), _all(DiTBlock, network)
    if edits.time is not None:
        yield network.register_forward_pre_hook(_with_time(edits.time), with_kwargs=True)
    for layer, radius in edits.local:
        assert isinstance(network, DiT)
        near = within(network.patch_embed.grid, radius)
        if not near.all():  # without a mask the output stays bit-identical
            yield attentions[layer].attention.register_forward_pre_hook(_with_mask(near))
    for layer in {layer for layer, _ in {*edits.uniform, *edits.heads}}:
        uniform = {head for at, head in edits.uniform if at == layer}
        flat = sorted(range(attentions[layer].heads) if None in uniform else (h for h in uniform if h is not None))
        off = sorted(head for at, head in edits.heads if at == layer)
        yield attentions[layer].attention.register_forward_hook(_with_heads(flat, off))
    for block, branch in edits.gates:
        yield blocks[block].modulation.register_forward_hook(_with_gate_shut(branch))
    for block in edits.blocks:
        yield blocks[block].register_forward_hook(lambda _, inputs, __: inputs[0])


def _with_time(time: float) -> Callable[..., Any]:
    """A hook before the network that replaces t, and shortens an interval to at most t."""

    def held(cond: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if cond is None or "interval" not in cond:
            return cond
        return cond | {"interval": cond["interval"].clamp(max=time)}

    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "cond" in named:
            named = named | {"cond": held(named["cond"])}
        if "t" in named:
            return inputs, named | {"t": torch.full_like(named["t"], time)}
        x, t, *rest = inputs
        return (x, torch.full_like(t, time), *map(held, rest)), named

    return hook


def _with_mask(near: Bool[Tensor, "N N"]) -> Callable[..., Any]:
    """A hook before attention that hides distant patches from each patch."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        q, k, v, *masks = inputs
        others = q.shape[2] - len(near)  # tokens of conditions see all, and all see them
        mask = F.pad(near.to(q.device), (0, others, 0, others), value=True)[None, None]  # (1, 1, M, M)
        return q, k, v, mask & masks[0] if masks else mask

    return hook


def _with_heads(flat: list[int], off: list[int]) -> Callable[..., Any]:
    """A hook after attention that makes some heads uniform and switches others off."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], mixed: Tensor) -> Tensor:
        changed = mixed.clone()  # (B, h, M, d)
        if flat:
            mean = mean_value(inputs[2], inputs[3] if len(inputs) > 3 else None)
            changed[:, flat] = mean[:, flat].to(mixed.dtype)
        changed[:, off] = 0
        return changed

    return hook


def mean_value(v: Float[Tensor, "B h M d"], mask: Bool[Tensor, "#B 1 #N M"] | None) -> Float[Tensor, "B h Q d"]:
    """The mean of v over the visible keys: one for all queries (Q = 1) or, with a mask, one for each query."""
    if mask is None:
        return v.mean(2, keepdim=True)
    return (mask / mask.sum(-1, keepdim=True)).to(v.dtype) @ v


def _with_gate_shut(branch: str) -> Callable[..., Any]:
    """A hook after a block's modulation that sets the gate of a branch to 0."""

    def hook(_: nn.Module, __: Any, modulation: BlockModulation) -> BlockModulation:
        part = getattr(modulation, branch)
        return modulation._replace(**{branch: part._replace(gate=torch.zeros_like(part.gate))})

    return hook
