"""What a store of latents will be, agreed on before anything is encoded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError
from ditlab.data.images.source import Source
from ditlab.data.latents.index import MOST_SHARDS, VAE, Plan
from ditlab.data.latents.vae import Autoencoder

DEFAULTS: dict[str, Any] = {"mirrored": True, "dtype": "float16", "precision": "fp32", "batch_size": 16}
OPTIONS = {
    "latent_scale": "--scale",
    "latent_shift": "--shift",
    "image_size": "--data.image-size",
    "mirrored": "--mirrored or --no-mirrored",
    "dtype": "--dtype",
    "precision": "--precision",
    "batch_size": "--batch-size",
    "shard_size": "--shard-size",
    "window": "--data.window",
}


def source_digest(source: Source) -> str:
    """sha256 of the names, sizes and labels of all images: of what they are, and not of when they were written."""
    digest = hashlib.sha256(json.dumps([source.classes, len(source.names)]).encode())
    for i, name in enumerate(source.names):
        digest.update(json.dumps([name, source.sizes[i], source.labels and source.labels[i]]).encode())
    return digest.hexdigest()


def make_plan(
    source: Source,
    autoencoder: Autoencoder,
    image_size: tuple[int, int],
    *,
    scale: float | None = None,
    shift: float | None = None,
    shard_size: int = 1024,
    **others: Any,
) -> Plan:
    """What a store will be; ``InputError`` if the image size or the autoencoder does not do.

    Args:
        scale, shift: of latents to train on, (z − shift)·scale; None is the autoencoder's own.
        others: see ``Plan``.
    """
    config = autoencoder.model.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    if any(side % factor for side in image_size):
        near = " ".join(str(max(factor, round(side / factor) * factor)) for side in image_size)
        raise InputError(
            f"--data.image-size {' '.join(map(str, image_size))}: this VAE makes one latent of {factor}×{factor} "
            f"pixels, which must divide the size; use --data.image-size {near}"
        )
    if config.in_channels not in (1, 3):
        raise InputError(f"the VAE {autoencoder.name} takes images of {config.in_channels} channels, not 1 or 3")
    shards = -(-len(source.names) // shard_size)
    if shards > MOST_SHARDS:
        enough = -(-len(source.names) // MOST_SHARDS)
        raise InputError(f"{shards:,} shards are more than {MOST_SHARDS:,}: use --shard-size {enough} or more")
    own_shift = getattr(config, "shift_factor", None) or 0.0
    return Plan(
        vae=VAE(kind=type(autoencoder.model).__name__, name=autoencoder.name, digest=autoencoder.digest),
        latent_scale=config.scaling_factor if scale is None else scale,
        latent_shift=own_shift if shift is None else shift,
        shape=(config.latent_channels, image_size[0] // factor, image_size[1] // factor),
        image_size=image_size,
        classes=source.classes,
        files=len(source.names),
        source=source_digest(source),
        shard_size=shard_size,
        **{**DEFAULTS, **others},
    )


def compare(begun: Plan, asked: Plan, folder: Path) -> None:
    """Raise ``InputError`` if a store was begun with something else than is asked for; both are named."""
    if begun.vae.digest != asked.vae.digest:
        raise InputError(f"{folder} is of the VAE {begun.vae}, and --vae is {asked.vae}: choose another --out")
    if (begun.source, begun.files, begun.classes) != (asked.source, asked.files, asked.classes):
        raise InputError(
            f"{folder} is of {begun.files:,} images (sha256 {begun.source[:12]}), and --data.path has {asked.files:,} "
            f"others (sha256 {asked.source[:12]}): bring those back, or choose another --out"
        )
    for name, option in OPTIONS.items():
        then, now = getattr(begun, name), getattr(asked, name)
        if then != now:
            raise InputError(
                f"{folder} was begun with {name} {_words(then)}, and {option} says {_words(now)}: give it as then, or "
                f"choose another --out"
            )


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
