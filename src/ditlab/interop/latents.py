"""Latents into pictures, through diffusers' ``AutoencoderKL`` (extra ``latents``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.config import ExternalData
from ditlab.errors import InputError
from ditlab.interop.files import read_json
from ditlab.run import Run

AT_ONCE = 4  # images decoded together


def decode(run: Run, latents: Float[Tensor, "n C H W"], vae: str | Path | None = None) -> Float[Tensor, "n 3 h w"]:
    """The images that an autoencoder makes of a run's samples, clamped to [−1, 1].

    Args:
        run: whose samples they are; its data say how latents were scaled.
        latents: its samples.
        vae: a folder that ``AutoencoderKL.save_pretrained`` wrote, or a pipeline's with ``vae`` in it; None is the one
            recorded when the run was imported. Nothing is downloaded.

    Raises:
        InputError: samples that are no latents, no autoencoder or one for other latents, or diffusers is missing.
    """
    data = run.config.data
    if not isinstance(data, ExternalData) or data.latent_scale is None:
        raise InputError(f"samples of {run.folder.path} are no latents: there is nothing to decode, leave --vae out")
    given = vae if vae is not None else data.vae
    if given is None:
        raise InputError(
            f"samples of {run.folder.path} are latents: give --vae FOLDER of the autoencoder that decodes them, "
            f"or --out FILE.npz for the latents"
        )
    device = next(run.process.parameters()).device
    decoder = _autoencoder(vae_folder(given)).to(device)
    channels = decoder.config.latent_channels
    if channels != run.shape[0]:
        raise InputError(f"the autoencoder in {given} has {channels} latent channels, and {run.folder.path} {run.shape[0]}")
    pieces = []
    with torch.no_grad():
        for piece in latents.split(AT_ONCE):
            raw = piece.to(device) / data.latent_scale + data.latent_shift
            pieces.append(decoder.decode(raw).sample.float().cpu())
    return torch.cat(pieces).clamp(-1, 1)


def vae_folder(path: str | Path) -> Path:
    """The folder of the autoencoder itself.

    Raises:
        InputError: there is none.
    """
    folder = Path(path)
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise InputError(f"{path} is no folder of an autoencoder: there is no config.json in it; give --vae FOLDER")
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "AutoencoderKL":
        raise InputError(f"{folder / 'config.json'} describes a {kind}, not an AutoencoderKL")
    return folder


def _autoencoder(folder: Path) -> "AutoencoderKL":
    if find_spec("diffusers") is None:
        raise InputError("decoding latents needs diffusers: pip install 'ditlab[latents]'")
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        decoder = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32)
    except Exception as error:  # whatever diffusers, safetensors or torch says of a damaged folder
        raise InputError(f"the autoencoder in {folder} cannot be read: {str(error).splitlines()[0][:200]}") from None
    return decoder.eval().requires_grad_(False)
