"""The loaded network as a list of nodes, in the order a batch passes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.inspection.flow import Part, measure_parts, tensors_of
from ditlab.networks.conditioner import Embedded
from ditlab.networks.costs import multiply_accumulates_by_module, parameter_count
from ditlab.networks.dit import DiT
from ditlab.networks.layers import CrossAttention

# For a DiT: a pattern of a module's name → kind, title, and the section of the page that goes deeper.
_DIT_PARTS: dict[str, tuple[str, str, str | None]] = {
    r"patch_embed": ("patch_embed", "Patch embedding", "patches"),
    r"conditioner\.time": ("time", "Time embedding", None),
    r"conditioner\.labels": ("label", "Label embedding", None),
    r"conditioner\.interval": ("interval", "Interval embedding", None),
    r"conditioner\.scalars\.\w+": ("scalar", "", None),
    r"conditioner\.text": ("text", "Text embedding", None),
    r"block_conditioners\.\d+": ("other", "Embeddings of one block (Conditioner)", None),
    r"blocks\.\d+\.modulation": ("modulation", "", "gates"),
    r"blocks\.\d+\.attn": ("attention", "Attention", "attention"),
    r"blocks\.\d+\.mlp": ("mlp", "MLP", "gates"),
    r"final": ("final", "Final layer", None),
}
_MODULATIONS = {"AdaLNZero": "adaLN-Zero", "AdaLN": "adaLN", "FiLM": "FiLM", "Plain": "Learned norms"}


def diagram(network: nn.Module, x: Tensor, forward: Callable[[], Any]) -> dict[str, Any]:
    """Nodes and totals of a network, from hooks on real forward passes of ``x`` (1, *shape).

    Times are those of one warm pass, the one that lasted the median: those of the nodes and ``between``, what is spent
    outside them, add up to ``ms``.

    Of a DiT, each node of a block says whether the block is ``gated``, modulations and the final layer whether they
    depend on what the network is told (``steered``), and ``tokens`` names the conditions that join the sequence after
    the patches, and those that cross-attention reads.
    """
    counts = multiply_accumulates_by_module(network, tuple(x.shape[1:]))
    parts = measure_parts(_watched(network), forward)
    whole = parts.pop(0)
    nodes = [_node(network, part, counts.get(part.name, 0)) for part in parts]
    for node in nodes:  # what has a node of its own is not counted again
        inner = [part for part in parts if part.name.startswith(f"{node['name']}.")]
        node["parameters"] -= sum(part.parameters for part in inner)
        node["ms"] = round(node["ms"] - sum(part.milliseconds for part in inner), 4)
    if isinstance(network, DiT):
        nodes = _with_reshapes(network, nodes, x)
        _say_what_steers(network, nodes, forward)
    first = _fixed("x", "input", "Input x_t", list(x.shape), list(x.shape), "denoise")
    last = _fixed("y", "output", "Prediction", whole.gives, whole.gives, "denoise")
    return {
        "nodes": [first, *nodes, last],
        "parameters": whole.parameters,
        "macs": counts.get("", 0),
        "ms": round(whole.milliseconds, 4),
        "between": round(whole.milliseconds - sum(node["ms"] for node in nodes), 4),
    } | (_tokens(network) if isinstance(network, DiT) else {})


def _tokens(network: DiT) -> dict[str, Any]:
    joined, read = network.token_names(None), network.token_names(None, network.context)
    return {"tokens": {"sequence": list(joined), "cross": list(read)}}


def _watched(network: nn.Module) -> dict[str, nn.Module]:
    """Which modules become nodes, the network itself first."""
    if isinstance(network, DiT):
        names = [name for name, module in network.named_modules() if _dit_part(name, module) is not None]
    else:
        names = []
        for name, child in network.named_children():
            names += [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
    return {"": network} | {name: network.get_submodule(name) for name in names}


def _dit_part(name: str, module: nn.Module) -> tuple[str, str, str | None] | None:
    """Kind, title and section of a module of a DiT, or None if it is no node."""
    if isinstance(module, CrossAttention):
        return "cross", "Cross-attention", "attention"
    return next((part for pattern, part in _DIT_PARTS.items() if re.fullmatch(pattern, name)), None)


def _node(network: nn.Module, part: Part, macs: int) -> dict[str, Any]:
    module = network.get_submodule(part.name)
    described = _dit_part(part.name, module) if isinstance(network, DiT) else None
    kind, title, section = described or ("other", "", None)
    if kind == "modulation":
        title = next((_MODULATIONS[c.__name__] for c in type(module).mro() if c.__name__ in _MODULATIONS), part.kind)
    if kind == "scalar":
        title = f"{part.name.rpartition('.')[2]} embedding"
    block = re.match(r"blocks\.(\d+)\.", part.name)
    return _fixed(part.name, kind, title or f"{part.name} ({part.kind})", [], part.gives, section, part.parameters) | {
        "class": part.kind,
        "block": int(block[1]) if block else None,
        "in": part.takes,
        "macs": macs,
        "ms": round(part.milliseconds, 4),
    }


def _say_what_steers(network: DiT, nodes: list[dict[str, Any]], forward: Callable[[], Any]) -> None:
    """Add ``gated`` and ``steered``; what is not steered takes no conditions, and without gates there is no section."""
    conditions = _conditions_of(network, forward)
    for node in nodes:
        if node["block"] is not None:
            gated = network.blocks[node["block"]].modulation.gated
            node["gated"] = gated
            if node["section"] == "gates" and not gated:
                node["section"] = None
        if node["kind"] in ("modulation", "final"):
            module = network.final.modulation if node["kind"] == "final" else network.get_submodule(node["name"])
            node["steered"] = _depends(module, conditions)
            if not node["steered"]:
                node["in"] = node["in"][:-1]


def _conditions_of(network: DiT, forward: Callable[[], Any]) -> Embedded:
    """What the conditioner gives in a forward pass."""
    seen: list[Embedded] = []
    with network.conditioner.register_forward_hook(lambda _, __, output: seen.append(output)):
        forward()
    return seen[0]


def _depends(modulation: nn.Module, conditions: Embedded) -> bool:
    """Whether any conditions, through whatever they are embedded as, reach the output."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (conditions.vector, *conditions.parts)]
        text = None if conditions.text is None else conditions.text.detach().requires_grad_()
        told = Embedded(leaves[0], tuple(leaves[1:]), text, conditions.text_mask)
        total = sum(leaf.sum() for leaf in tensors_of(modulation(told)))
        leaves += [] if text is None else [text]
        if not isinstance(total, Tensor) or not total.requires_grad:
            return False
        return any(grad is not None for grad in torch.autograd.grad(total, leaves, allow_unused=True))


def _fixed(
    name: str, kind: str, title: str, takes: list[int], gives: list[int], section: str | None, parameters: int = 0
) -> dict[str, Any]:
    """A node that is no module: it computes next to nothing."""
    return {
        "name": name,
        "kind": kind,
        "class": "",
        "title": title,
        "block": None,
        "in": [takes],
        "out": gives,
        "parameters": parameters,
        "macs": 0,
        "ms": 0.0,
        "section": section,
    }


def _with_reshapes(network: DiT, nodes: list[dict[str, Any]], x: Tensor) -> list[dict[str, Any]]:
    """Add the positions after the patch embedding, where condition tokens join and leave, and the way to an image."""
    patch = next(node for node in nodes if node["kind"] == "patch_embed")
    table = network.positions.numel()
    assert parameter_count(network) == sum(node["parameters"] for node in nodes) + table
    positions = _fixed("positions", "positions", "+ positions", patch["out"], patch["out"], "patches", table)
    image = [len(x), network.out_channels, *network.image_size]
    back = _fixed("unpatchify", "unpatchify", "Unpatchify", nodes[-1]["out"], image, None)
    others = [node for node in nodes if node is not patch]
    joined = network.token_names(None)
    if joined:
        first = next(i for i, node in enumerate(others) if node["block"] is not None)
        longer = [patch["out"][0], patch["out"][1] + len(joined), patch["out"][2]]
        leave = _fixed("cut", "cut", "Keep patches", longer, patch["out"], None)
        join = _fixed("join", "join", "Join tokens", patch["out"], longer, None)
        join["in"].append([longer[0], len(joined), longer[2]])
        others = [*others[:first], join, *others[first:-1], leave, others[-1]]
    return [patch, positions, *others, back]
