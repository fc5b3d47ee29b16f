"""Sizes of published networks (Peebles & Xie 2023, table 1)."""

from __future__ import annotations

from typing import Any

_SIZES = {
    #     depth, width, heads
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
_PATCH_SIZES = (8, 4, 2)

PRESETS = tuple(f"DiT-{size}/{patch}" for size in _SIZES for patch in _PATCH_SIZES)


def preset(name: str) -> dict[str, Any]:
    """The arguments of ``DiT`` that make a published network, ``num_classes`` left to the caller.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    size, patch = name.removeprefix("DiT-").split("/")
    depth, dim, heads = _SIZES[size]
    return {
        "image_size": 32,
        "patch_size": int(patch),
        "channels": 4,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": 4.0,
        "positions": "sincos",
        "learned_variance": True,
        "gelu": "tanh",
        "time_features": 256,
    }
