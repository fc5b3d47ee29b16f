"""Random numbers: every draw is a function of its purpose, so that no generator state needs to be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.device import moved


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed hashed from all parts. Its low 32 bits, all that torch's CPU generator uses, are well mixed too."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` seeded by ``parts``, for example (seed, "train", step, rank)."""
    return torch.Generator(device).manual_seed(seed_from(*parts))


def sample_streams(seed: int, indices: Sequence[int], begin: int = 0) -> list[np.random.Generator]:
    """A Philox stream (Salmon et al. 2011) with the key (seed, i) for each sample i, starting at counter ``begin``."""
    keys = (np.array([seed % 2**64, i], dtype=np.uint64) for i in indices)
    return [np.random.Generator(np.random.Philox(key=key, counter=begin)) for key in keys]


class SampleNoise:
    """Standard normal noise for sampling: sample i's noise depends on (seed, i) alone.

    Each sample has its own stream (``sample_streams``), drawn on the CPU, so it is the same in any batch and on any
    device.

    Args:
        seed: any whole number.
        indices: the numbers i of the samples in this batch.
        shape: shape of one sample.
        like: a tensor that gives the device and dtype of the noise.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], like: Tensor) -> None:
        self.shape = tuple(shape)
        self.like = like
        self.streams = sample_streams(seed, indices)

    def __call__(self) -> Float[Tensor, "B ..."]:
        """The next draw: (B, *shape)."""
        rows = [stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams]
        return moved(torch.from_numpy(np.stack(rows)).to(self.like.dtype), self.like.device)
