"""Latents into pictures, through diffusers' ``AutoencoderKL`` (extra ``latents``)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.config import Config
from ditlab.core.errors import AutoencoderWarning, InputError
from ditlab.data.latents.vae import load_vae
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run

AT_ONCE = 4  # images decoded together


@dataclass(frozen=True)
class Decoder:
    """Turns latents (n, C, H, W) into images (n, 3, h, w) in [−1, 1]; ``digest`` is the autoencoder's sha256."""

    autoencoder: Any
    digest: str
    scale: float
    shift: float

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        pieces = torch.split(latents.to(self.autoencoder.device), AT_ONCE)
        images = [self.autoencoder.decode(piece / self.scale + self.shift).sample.float().cpu() for piece in pieces]
        return torch.cat(images).clamp(-1, 1)


def decoder(run: Run, vae: str | Path | None = None) -> Decoder:
    """A function that turns a run's samples (n, C, H, W) into images (n, 3, h, w), clamped to [−1, 1].

    Args:
        run: whose samples they will be; its data say how latents were scaled.
        vae: a folder that ``AutoencoderKL.save_pretrained`` wrote, a pipeline's with ``vae`` in it, or a name on the
            Hub; None is the one recorded when the run was imported or its latents were encoded.

    An ``AutoencoderWarning`` says where the recorded one is not as it was when the latents were encoded.

    Raises:
        InputError: samples that are no latents, no autoencoder or one for other latents, or diffusers is missing.
    """
    device = next(run.process.parameters()).device
    return decoder_of(run.folder, run.config, run.shape, device, vae)


def decoder_of(
    folder: RunFolder,
    config: Config,
    shape: tuple[int, ...],
    device: torch.device,
    vae: str | Path | None = None,
    fetch: bool = True,
) -> Decoder:
    """The same of a run whose network is not loaded, on a device; unless ``fetch``, of what is on this machine alone.

    Raises:
        InputError: as ``decoder``, and of an autoencoder of the Hub that is to be had but was not fetched.
    """
    space = config.latent_space
    if space is None:
        raise InputError(f"samples of {folder.path} are no latents: there is nothing to decode, leave --vae out")
    given = vae if vae is not None else space.vae
    if given is None:
        raise InputError(
            f"samples of {folder.path} are latents: give --vae FOLDER of the autoencoder that decodes them, "
            f"or --out FILE.npz for the latents"
        )
    loaded = load_vae(given, fetch)
    autoencoder = loaded.model
    channels = autoencoder.config.latent_channels
    if channels != shape[0]:
        raise InputError(f"the autoencoder in {given} has {channels} latent channels; {folder.path} has {shape[0]}")
    if vae is None and space.vae_digest is not None and loaded.digest != space.vae_digest:
        warnings.warn(
            f"the autoencoder in {given} is not the one that the latents were made by: its sha256 is "
            f"{loaded.digest[:12]} and was {space.vae_digest[:12]}; give that one as --vae FOLDER",
            AutoencoderWarning,
            2,
        )
    return Decoder(autoencoder.to(device), loaded.digest, space.scale, space.shift)
