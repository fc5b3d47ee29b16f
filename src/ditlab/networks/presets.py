"""Published networks (Peebles & Xie 2023, table 1): their sizes, and the details in which they differ from ours."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

_SIZES = {
    #     depth, width, heads
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
_PATCH_SIZES = (8, 4, 2)
_LATENTS = {"image_size": 32, "channels": 4, "mlp_ratio": 4.0, "positions": "sincos"}

PRESETS = tuple(f"DiT-{size}/{patch}" for size in _SIZES for patch in _PATCH_SIZES)


class Published(NamedTuple):
    """Details that published weights fix; a network trained from scratch has no reason to change them.

    Args:
        gelu: ``"exact"``, or the ``"tanh"`` approximation of the published networks.
        time_features: number of sinusoidal features of the time.
        time_offset: the sinusoids see time_scale · t + time_offset.
        time_frequency_shift: their exponents are i/(half − shift): 0 as published, 1 as in diffusers' DiT.
        embedders: ``"shared"``, or ``"per-block"``: each block embeds time and label on its own, as in diffusers' DiT,
            and the final layer uses the embedding of the first block.
        null_label: False for a table of labels without the null label: each sample then needs a label.
    """

    gelu: Literal["exact", "tanh"] = "exact"
    time_features: int = 64
    time_offset: float = 0.0
    time_frequency_shift: int = 0
    embedders: Literal["shared", "per-block"] = "shared"
    null_label: bool = True


def preset(name: str) -> dict[str, Any]:
    """The sizes and details of a published network, by the names of the configuration; ``num_classes`` is left out."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    size, patch = name.removeprefix("DiT-").split("/")
    depth, dim, heads = _SIZES[size]
    sizes = {"patch_size": int(patch), "dim": dim, "depth": depth, "heads": heads}
    return {**_LATENTS, **sizes, "learned_variance": True, "gelu": "tanh", "time_features": 256}
