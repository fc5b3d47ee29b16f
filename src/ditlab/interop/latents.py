"""Latents into pictures, through diffusers' ``AutoencoderKL`` (extra ``latents``)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.config import ExternalData
from ditlab.disk import read_json
from ditlab.errors import InputError
from ditlab.interop.settings import class_name
from ditlab.run import Run

Decoder = Callable[[Tensor], Tensor]

AT_ONCE = 4  # images decoded together


def decoder(run: Run, vae: str | Path | None = None) -> Decoder:
    """A function that turns a run's samples (n, C, H, W) into images (n, 3, h, w), clamped to [−1, 1].

    Args:
        run: whose samples they will be; its data say how latents were scaled.
        vae: a folder that ``AutoencoderKL.save_pretrained`` wrote, or a pipeline's with ``vae`` in it; None is the one
            recorded when the run was imported. Nothing is downloaded.

    Raises:
        InputError: samples that are no latents, no autoencoder or one for other latents, or diffusers is missing.
    """
    data = run.config.data
    if not isinstance(data, ExternalData) or data.latent_scale is None:
        raise InputError(f"samples of {run.folder.path} are no latents: there is nothing to decode, leave --vae out")
    scale, shift = data.latent_scale, data.latent_shift
    given = vae if vae is not None else data.vae
    if given is None:
        raise InputError(
            f"samples of {run.folder.path} are latents: give --vae FOLDER of the autoencoder that decodes them, "
            f"or --out FILE.npz for the latents"
        )
    device = next(run.process.parameters()).device
    autoencoder = _load(vae_folder(given)).to(device)
    channels = autoencoder.config.latent_channels
    if channels != run.shape[0]:
        raise InputError(
            f"the autoencoder in {given} has {channels} latent channels; {run.folder.path} has {run.shape[0]}"
        )

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        pieces = torch.split(latents.to(device), AT_ONCE)
        images = [autoencoder.decode(piece / scale + shift).sample.float().cpu() for piece in pieces]
        return torch.cat(images).clamp(-1, 1)

    return decode


def vae_folder(path: str | Path) -> Path:
    """The folder of the autoencoder itself.

    Raises:
        InputError: there is none.
    """
    folder = Path(path)
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise InputError(f"{path} is no folder of an autoencoder: there is no config.json in it; give --vae FOLDER")
    file = folder / "config.json"
    kind = class_name(read_json(file), file)
    if kind != "AutoencoderKL":
        raise InputError(f"{file} describes a {kind}, not an AutoencoderKL")
    return folder


def _load(folder: Path) -> Any:
    if find_spec("diffusers") is None:
        raise InputError("decoding latents needs diffusers: pip install 'ditlab[latents]'")
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        load: Any = AutoencoderKL.from_pretrained
        autoencoder = load(folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32)
    except Exception as error:  # whatever diffusers, safetensors or torch says of a damaged folder
        raise InputError(f"the autoencoder in {folder} cannot be read: {str(error).splitlines()[0][:200]}") from None
    return autoencoder.eval().requires_grad_(False)
