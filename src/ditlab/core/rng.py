"""Where random numbers come from: every draw is a function of what it is for, so no generator state is saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.core.device import moved


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, and differs for any other parts.

    Its low 32 bits alone are already well mixed: torch's CPU generator uses no more of a seed.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` that starts from ``parts``, for example (seed, "train", step, rank)."""
    return torch.Generator(device).manual_seed(seed_from(*parts))


def sample_streams(seed: int, indices: Sequence[int], begin: int = 0) -> list[np.random.Generator]:
    """A Philox stream (Salmon et al. 2011) for each sample i, with the key (seed, i), from the counter ``begin`` on."""
    keys = (np.array([seed % 2**64, i], dtype=np.uint64) for i in indices)
    return [np.random.Generator(np.random.Philox(key=key, counter=begin)) for key in keys]


class SampleNoise:
    """Standard normal noise for sampling, in which sample i's numbers depend on (seed, i) and on nothing else.

    Each sample has a stream of its own (``sample_streams``), drawn on the CPU: the same sample comes out of any batch,
    on any device.

    Args:
        seed: any whole number.
        indices: the numbers i of the samples of this batch.
        shape: shape of one sample.
        like: noise is returned on the device and in the type of this tensor.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], like: Tensor) -> None:
        self.shape = tuple(shape)
        self.like = like
        self.streams = sample_streams(seed, indices)

    def __call__(self) -> Float[Tensor, "B ..."]:
        """The next draw: (B, *shape)."""
        rows = [stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams]
        return moved(torch.from_numpy(np.stack(rows)).to(self.like.dtype), self.like.device)
