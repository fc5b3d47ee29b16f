"""Latents into pictures, for looking: the run's own autoencoder, where it is at hand, loaded when it is first asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ditlab.config import Config
from ditlab.core.device import resolve_device
from ditlab.core.errors import InputError
from ditlab.data.images.source import HUB_NAME
from ditlab.runs.build import build_dataset
from ditlab.runs.decode import Decoder, decoder_of
from ditlab.runs.folder import RunFolder

AT_ONCE = 4  # latents in one question
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Decoding:
    """What turns a run's latents into pictures; the network is not needed.

    An autoencoder named on the Hub is at hand once it was fetched: nothing is fetched for looking.
    """

    def __init__(self, folder: RunFolder, config: Config, device: str = "auto") -> None:
        self.folder, self.config, self.device = folder, config, resolve_device(device)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return build_dataset(self.config).shape

    @cached_property
    def _decode(self) -> Decoder:
        return decoder_of(self.folder, self.config, self.shape, self.device, fetch=False)

    def pictures(self, body: bytes) -> np.ndarray:
        """The pictures (n, 3, h, w), uint8, of n latents, float32 one after the other.

        Raises:
            InputError: there is no autoencoder at hand, or the bytes are no one to four latents of this run.
        """
        why = why_not(self.config)
        if why is not None:
            raise InputError(why)
        size = 4 * int(np.prod(self.shape))
        if not body or len(body) % size or len(body) > AT_ONCE * size:
            raise InputError(f"send one to {AT_ONCE} latents of shape {self.shape}, {size} bytes each")
        latents = torch.from_numpy(np.frombuffer(body, np.float32).reshape(-1, *self.shape).copy())
        if not latents.isfinite().all():
            raise InputError("these latents hold numbers that are not finite")
        pictures = ((self._decode(latents) + 1) * 127.5).round().byte()
        return pictures.contiguous().numpy()  # convolutions may leave their channels last in memory


def why_not(config: Config) -> str | None:
    """Why samples of a run cannot be shown as pictures, in a line that names no place of this machine, or None."""
    space = config.latent_space
    if space is None:
        return "this run's samples are no latents"
    if space.vae is None:
        return "the run does not say which autoencoder its latents are of"
    if find_spec("diffusers") is None:
        return "decoding needs diffusers: pip install 'ditlab[latents]'"
    if not _is_here(space.vae):
        return f"the autoencoder is not here: {space.vae if HUB_NAME.fullmatch(space.vae) else Path(space.vae).name}"
    return None


def _is_here(vae: str) -> bool:
    """Whether an autoencoder lies in a folder here, or among what was fetched from the Hub, with its weights."""
    if Path(vae).exists() or not HUB_NAME.fullmatch(vae):
        return any(_is_whole(partial(_holds, folder)) for folder in (Path(vae), Path(vae) / "vae"))
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    repository, _, commit = vae.partition("@")

    def fetched(place: str, name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, place + name, revision=commit or None), str)

    return any(_is_whole(partial(fetched, place)) for place in ("", "vae/"))


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _is_whole(there: Callable[[str], bool]) -> bool:
    """Whether there are settings, and weights in one file or in several."""
    return there("config.json") and any(there(WEIGHTS + ending) for ending in ("", ".index.json"))
