"""The loaded network as a list of nodes, in the order a batch passes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ditlab.inspection.flow import Part, measure_parts
from ditlab.networks.counts import multiply_accumulates_by_module, parameter_count
from ditlab.networks.dit import DiT

# For a DiT: the end of a module's name → kind, title, and the section of the page that goes deeper.
_DIT_PARTS: dict[str, tuple[str, str, str | None]] = {
    "patch_embed": ("patch_embed", "Patch embedding", "patches"),
    "conditioner.time": ("time", "Time embedding", None),
    "conditioner.labels": ("label", "Label embedding", None),
    "modulation": ("modulation", "adaLN-Zero", "gates"),
    "attn": ("attention", "Attention", "attention"),
    "mlp": ("mlp", "MLP", "gates"),
    "final": ("final", "Final layer", None),
}


def diagram(network: nn.Module, x: Tensor, forward: Callable[[], Any]) -> dict[str, Any]:
    """Nodes and totals of a network, from hooks on real forward passes of ``x`` (1, *shape)."""
    counts = multiply_accumulates_by_module(network, tuple(x.shape[1:]))
    parts = measure_parts(_watched(network), forward)
    whole = parts.pop(0)
    nodes = [_node(network, part, counts.get(part.name, 0)) for part in parts]
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
        names = [name for name, _ in network.named_modules() if _dit_part(name) is not None]
    else:
        names = []
        for name, child in network.named_children():
            names += [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
    return {"": network} | {name: network.get_submodule(name) for name in names}


def _dit_part(name: str) -> tuple[str, str, str | None] | None:
    short = re.sub(r"^blocks\.\d+\.", "", name)
    top_level_only = {"modulation", "attn", "mlp"}
    if short in top_level_only and short == name:
        return None
    return _DIT_PARTS.get(short)


def _node(network: nn.Module, part: Part, macs: int) -> dict[str, Any]:
    described = _dit_part(part.name) if isinstance(network, DiT) else None
    kind, title, section = described or ("other", f"{part.name} ({part.kind})", None)
    block = re.match(r"blocks\.(\d+)\.", part.name)
    return {
        "name": part.name,
        "kind": kind,
        "title": title,
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
