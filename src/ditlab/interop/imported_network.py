"""The result of reading any format: a configuration and two sets of weights that fit it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ditlab.config import Config, DiTConfig, ExternalData
from ditlab.core.errors import ConfigError, InputError
from ditlab.interop.safe_load import shortened
from ditlab.networks.costs import on_meta
from ditlab.networks.keymaps import Names
from ditlab.runs.build import build_dataset, build_network

STABLE_DIFFUSION_SCALE = 0.18215  # latent scale of the autoencoder that published DiT and SiT use


class Imported(NamedTuple):
    """An imported network in our conventions; without averaged weights both sets are the same."""

    config: Config
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def external_data(
    shape: tuple[int, int, int], classes: int | None, scale: float | None = None, vae: Path | None = None
) -> ExternalData:
    """Data of a shape: images for 1 or 3 channels, otherwise latents; 4 channels have Stable Diffusion's scale."""
    if scale is None and shape[0] not in (1, 3):
        scale = STABLE_DIFFUSION_SCALE if shape[0] == 4 else 1.0
    return ExternalData(
        shape=shape, num_classes=classes, latent_scale=scale, vae=None if vae is None else str(vae.resolve())
    )


def ratio(hidden: int, dim: int) -> float:
    """The MLP ratio r for which int(dim · r) is ``hidden``."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else math.nextafter(exact, math.inf)


def check_shapes(tensors: dict[str, Tensor], network: DiTConfig, data: ExternalData, names: Names, path: Path) -> None:
    """Compare the shapes of tensors with the network's.

    Raises:
        InputError: they differ; some are listed, by their names in the file.
    """
    config = Config(data=data, network=network)
    try:
        own = on_meta(lambda: build_network(config, build_dataset(config))).state_dict()
    except (InputError, ConfigError) as error:
        raise InputError(f"{path}: {error}") from None
    assert own.keys() == tensors.keys(), own.keys() ^ tensors.keys()
    wrong = [
        f"{' + '.join(names.get(name, (name,)))} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        raise InputError(f"{path} has inconsistent shapes: {shortened(wrong)}")
