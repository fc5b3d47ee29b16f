"""The autoencoder whose latents are trained on: diffusers' ``AutoencoderKL`` (extra ``latents``), safetensors alone."""

from __future__ import annotations

import hashlib
import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ditlab.core.disk import forbidden, read_json
from ditlab.core.errors import InputError, first_line
from ditlab.data.images.source import HUB_NAME, pinned
from ditlab.data.latents.index import full_path

PATIENCE = 10.0  # seconds for the Hub to answer
WANTED = ("config.json", "diffusion_pytorch_model*.safetensors*")  # of a repository or of its folder vae


class Autoencoder(NamedTuple):
    """An autoencoder, ready to encode and decode in fp32, and where it came from: a folder, or a commit on the Hub."""

    model: Any
    name: str

    @property
    def digest(self) -> str:
        """sha256 of its weights and of those settings that are not diffusers' defaults.

        The others do not count: which of them a config.json spells out depends on the diffusers that wrote it.
        """
        config, known = self.model.config, inspect.signature(type(self.model).__init__).parameters
        given = {name: (config[name], parameter.default) for name, parameter in known.items() if name in config}
        kept = {name: value for name, (value, own) in given.items() if json.dumps(value) != json.dumps(own)}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()


def vae_folder(path: str | Path, fetch: bool = True) -> Path:
    """The folder of the autoencoder itself; a name on the Hub, where there is no such folder, is fetched if it may be.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    given = Path(path)
    if not given.exists() and HUB_NAME.fullmatch(str(path)):
        given = _fetched(str(path), fetch)
    folder = given / "vae" if (given / "vae" / "config.json").is_file() else given
    if not (folder / "config.json").is_file():
        raise InputError(f"{path} is no folder of an autoencoder: there is no config.json in it; give --vae FOLDER")
    file = folder / "config.json"
    config = read_json(file)
    if "_class_name" not in config:
        raise InputError(f"{file} has no _class_name, which says what it describes")
    if config["_class_name"] != "AutoencoderKL":
        raise InputError(f"{file} describes a {str(config['_class_name'])[:60]}, not an AutoencoderKL")
    return folder


def _fetched(name: str, fetch: bool) -> Path:
    """Where a repository of the Hub lies here, fetched if it has to be and may be."""
    if find_spec("huggingface_hub") is None:
        raise InputError(f"there is no folder {name}, and the Hub needs diffusers: pip install 'ditlab[latents]'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    patterns = [f"{folder}{pattern}" for folder in ("", "vae/") for pattern in WANTED]
    try:
        options: Any = {"allow_patterns": patterns, "etag_timeout": PATIENCE, "local_files_only": not fetch}
        repository, _, commit = name.partition("@")
        return Path(snapshot_download(repository, revision=commit or None, **options))
    except Exception as error:  # of the network, the Hub, and of what else they are made
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason += "; set HF_HOME to a folder that can be written" if forbidden(error) else ""
        raise InputError(f"there is no folder {name}, and it cannot be fetched from the Hub: {reason}") from None


def load_vae(path: str | Path, fetch: bool = True) -> Autoencoder:
    """An autoencoder from a folder that ``AutoencoderKL.save_pretrained`` wrote, a pipeline's, or the Hub.

    Unless ``fetch``, one of the Hub has to be here already.

    Raises:
        InputError: there is none, it is damaged or holds no safetensors, it scales each channel in a way of its own, or
            diffusers is missing.
    """
    if find_spec("diffusers") is None:
        raise InputError("autoencoders need diffusers: pip install 'ditlab[latents]'")
    folder = vae_folder(path, fetch)
    snapshot = folder.parent.name if folder.name == "vae" else folder.name  # the Hub's cache calls it by the commit
    name = full_path(str(path)) if Path(path).exists() else pinned(str(path), snapshot)
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        load: Any = AutoencoderKL.from_pretrained
        model = load(folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32)
    except Exception as error:  # whatever diffusers, safetensors or torch says of a damaged folder
        raise InputError(f"the autoencoder in {folder} cannot be read: {first_line(error)}") from None
    if own := [name for name in ("latents_mean", "latents_std") if getattr(model.config, name, None) is not None]:
        raise InputError(
            f"{folder / 'config.json'} gives {' and '.join(own)}, a number for each channel, which is not done here: "
            f"use a copy of the autoencoder where they are null, and ditlab latents encode with one --scale and --shift"
        )
    return Autoencoder(model.eval().requires_grad_(False), name)
