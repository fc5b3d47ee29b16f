"""The loaded network as a list of nodes, in the order a batch passes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ditlab.inspection.branches import modulated_blocks
from ditlab.inspection.flow import Part, measure_parts
from ditlab.networks.counts import multiply_accumulates_by_module, parameter_count
from ditlab.networks.dit import DiT
from ditlab.networks.layers import CrossAttention

# For a DiT: a pattern of a module's name → kind, title, and the section of the page that goes deeper.
_DIT_PARTS: dict[str, tuple[str, str, str | None]] = {
    r"patch_embed": ("patch_embed", "Patch embedding", "patches"),
    r"conditioner\.time": ("time", "Time embedding", None),
    r"conditioner\.labels": ("label", "Label embedding", None),
    r"conditioner\.interval": ("other", "Interval embedding (TimeEmbedding)", None),
    r"conditioner\.scalars\.\w+": ("other", "Scalar embedding (ScalarEmbedding)", None),
    r"conditioner\.text": ("other", "Text embedding (TextEmbedding)", None),
    r"block_conditioners\.\d+": ("other", "Embeddings of one block (Conditioner)", None),
    r"final": ("final", "Final layer", None),
}
_PLAIN_BLOCK: dict[str, tuple[str, str, str | None]] = {
    r"blocks\.\d+\.modulation": ("other", "", None),
    r"blocks\.\d+\.attn": ("other", "", "attention"),
    r"blocks\.\d+\.mlp": ("other", "", None),
}
_GATED_BLOCK = _PLAIN_BLOCK | {
    r"blocks\.\d+\.modulation": ("modulation", "adaLN-Zero", "gates"),
    r"blocks\.\d+\.attn": ("attention", "Attention", "attention"),
    r"blocks\.\d+\.mlp": ("mlp", "MLP", "gates"),
}


def diagram(network: nn.Module, x: Tensor, forward: Callable[[], Any]) -> dict[str, Any]:
    """Nodes and totals of a network, from hooks on real forward passes of ``x`` (1, *shape)."""
    counts = multiply_accumulates_by_module(network, tuple(x.shape[1:]))
    parts = measure_parts(_watched(network), forward)
    whole = parts.pop(0)
    nodes = [_node(network, part, counts.get(part.name, 0)) for part in parts]
    for node in nodes:  # what has a node of its own is not counted again
        inner = [part.parameters for part in parts if part.name.startswith(f"{node['name']}.")]
        node["parameters"] -= sum(inner)
    if isinstance(network, DiT):
        nodes = _with_reshapes(network, nodes, x)
    first = _fixed("x", "input", "Input x_t", list(x.shape), list(x.shape), "denoise")
    last = _fixed("y", "output", "Prediction", whole.gives, whole.gives, "denoise")
    return {
        "nodes": [first, *nodes, last],
        "parameters": whole.parameters,
        "macs": counts.get("", 0),
        "ms": round(whole.milliseconds, 4),
    }


def _watched(network: nn.Module) -> dict[str, nn.Module]:
    """Which modules become nodes, the network itself first."""
    if isinstance(network, DiT):
        patterns = _dit_patterns(network)
        names = [name for name, _ in network.named_modules() if _dit_part(patterns, name) is not None]
        names += [name for name, module in network.named_modules() if isinstance(module, CrossAttention)]
    else:
        names = []
        for name, child in network.named_children():
            names += [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
    return {"": network} | {name: network.get_submodule(name) for name in names}


def _dit_patterns(network: DiT) -> dict[str, tuple[str, str, str | None]]:
    return _DIT_PARTS | (_GATED_BLOCK if modulated_blocks(network) else _PLAIN_BLOCK)


def _dit_part(patterns: dict[str, tuple[str, str, str | None]], name: str) -> tuple[str, str, str | None] | None:
    return next((part for pattern, part in patterns.items() if re.fullmatch(pattern, name)), None)


def _node(network: nn.Module, part: Part, macs: int) -> dict[str, Any]:
    described = _dit_part(_dit_patterns(network), part.name) if isinstance(network, DiT) else None
    kind, title, section = described or ("other", "", None)
    block = re.match(r"blocks\.(\d+)\.", part.name)
    return {
        "name": part.name,
        "kind": kind,
        "title": title or f"{part.name} ({part.kind})",
        "block": int(block[1]) if block else None,
        "in": part.takes,
        "out": part.gives,
        "parameters": part.parameters,
        "macs": macs,
        "ms": round(part.milliseconds, 4),
        "section": section,
    }


def _fixed(
    name: str, kind: str, title: str, takes: list[int], gives: list[int], section: str | None, parameters: int = 0
) -> dict[str, Any]:
    """A node that is no module: it computes next to nothing."""
    return {
        "name": name,
        "kind": kind,
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
    """Add the position table after the patch embedding, and the way back from tokens to an image at the end."""
    patch = next(node for node in nodes if node["kind"] == "patch_embed")
    others = [node for node in nodes if node is not patch]
    table = network.positions.numel()
    positions = _fixed("positions", "positions", "+ positions", patch["out"], patch["out"], "patches", table)
    image = [len(x), network.out_channels, *network.image_size]
    back = _fixed("unpatchify", "unpatchify", "Unpatchify", nodes[-1]["out"], image, None)
    assert parameter_count(network) == sum(node["parameters"] for node in nodes) + table
    return [patch, positions, *others, back]
