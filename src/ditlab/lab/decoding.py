"""Latents into pictures, for looking: the run's own autoencoder, where it is at hand, loaded when it is first asked."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ditlab.data.images.locate import HUB_NAME
from ditlab.errors import InputError
from ditlab.interop.latents import Decoder, decoder
from ditlab.run import Run

AT_ONCE = 4  # latents in one question


class Decoding:
    """What turns a run's latents into pictures.

    ``why`` says in a line why it cannot, or is None. An autoencoder named on the Hub is at hand once it was fetched:
    nothing is fetched for looking.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def why(self) -> str | None:
        """Why latents cannot be shown as pictures, or None."""
        space = self.run.config.latent_space
        if space is None:
            return "this run's samples are no latents"
        if space.vae is None:
            return "the run does not say which autoencoder its latents are of"
        if find_spec("diffusers") is None:
            return "decoding needs diffusers: pip install 'ditlab[latents]'"
        if not _is_here(space.vae):
            return f"the autoencoder is not here: {space.vae}"
        return None

    @cached_property
    def _decode(self) -> Decoder:
        return decoder(self.run)

    def pictures(self, body: bytes) -> np.ndarray:
        """The pictures (n, 3, h, w), uint8, of n latents, float32 one after the other.

        Raises:
            InputError: there is no autoencoder at hand, or the bytes are no one to four latents of this run.
        """
        if self.why is not None:
            raise InputError(self.why)
        size = 4 * int(np.prod(self.run.shape))
        if not body or len(body) % size or len(body) > AT_ONCE * size:
            raise InputError(f"send one to {AT_ONCE} latents of shape {self.run.shape}, {size} bytes each")
        latents = torch.from_numpy(np.frombuffer(body, np.float32).reshape(-1, *self.run.shape).copy())
        if not latents.isfinite().all():
            raise InputError("these latents hold numbers that are not finite")
        pictures = ((self._decode(latents) + 1) * 127.5).round().byte()
        return pictures.contiguous().numpy()  # convolutions may leave their channels last in memory


def _is_here(vae: str) -> bool:
    """Whether an autoencoder lies in a folder here, or among what was fetched from the Hub."""
    if Path(vae).exists() or not HUB_NAME.fullmatch(vae):
        return any((Path(vae) / place / "config.json").is_file() for place in (".", "vae"))
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(vae, name), str) for name in ("config.json", "vae/config.json"))
