"""Which sample comes when: a pure function of (seed, position), so that a run's place in its data is one integer."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ditlab.core.rng import generator_for, seed_from

BLOCK = 256  # neighbouring samples, which are read together
WINDOW = 256 * BLOCK  # samples that are shuffled together, at most


def sample_order(seed: int, position: int, count: int, size: int) -> Int[Tensor, " count"]:
    """Indices of the ``count`` samples that follow after ``position`` samples were seen.

    Each epoch visits every one of the ``size`` samples once, in an order of its own; a batch may span epochs. Up to
    65,536 samples any order is equally likely. More are shuffled in two steps, so that reading stays near what was just
    read: blocks of 256 neighbours are permuted, and then the samples of up to 256 blocks that follow each other are.
    """
    indices = []
    while count > 0:
        epoch, offset = divmod(position, size)
        if size <= WINDOW:
            piece = _permutation(seed, epoch, size)[offset : offset + count]
        else:
            window, first = _blocks(seed, epoch, size).window_at(offset)
            piece = _window(seed, epoch, size, window)[offset - first : offset - first + count]
        indices.append(piece)
        position += len(piece)
        count -= len(piece)
    return torch.cat(indices)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> Int[Tensor, " size"]:
    return torch.randperm(size, generator=generator_for(seed, "order", epoch))


class Blocks(NamedTuple):
    """The blocks of an epoch in their order, and how they make windows, of 128 to 256 blocks each.

    All have 256 samples, but for the store's last one, which may come anywhere: ``missing`` samples make the window
    ``short`` smaller.
    """

    order: Int[Tensor, " blocks"]
    windows: int
    missing: int
    short: int

    def first_block(self, window: int) -> int:
        """Where a window begins."""
        return window * len(self.order) // self.windows

    def window_of(self, block: int) -> int:
        """The window of the block in that place of the order."""
        return ((block + 1) * self.windows - 1) // len(self.order)

    def window_at(self, offset: int) -> tuple[int, int]:
        """The window that holds the sample at ``offset`` of the epoch, and the offset of the window's first sample."""
        if offset < BLOCK * self.first_block(self.short + 1) - self.missing:
            window = min(self.window_of(offset // BLOCK), self.short)
            return window, BLOCK * self.first_block(window)
        window = self.window_of((offset + self.missing) // BLOCK)
        return window, BLOCK * self.first_block(window) - self.missing


@lru_cache(maxsize=2)
def _blocks(seed: int, epoch: int, size: int) -> Blocks:
    """The store is cut into as many stretches as a window has blocks, and gives each window a block of every stretch.

    So where samples are sorted by class, each window still has all classes in their shares.
    """
    count = -(-size // BLOCK)
    windows = -(-size // WINDOW)
    stretches = -(-count // windows)
    keys = torch.rand(stretches, windows, generator=generator_for(seed, "blocks", epoch))
    order = keys.argsort(dim=1, stable=True).int() + windows * torch.arange(stretches, dtype=torch.int32)[:, None]
    drawn = order.T.flatten()
    drawn = drawn[drawn < count]  # the last stretch may be shorter
    blocks = Blocks(drawn, windows, count * BLOCK - size, short=0)
    return blocks._replace(short=blocks.window_of(int((drawn == count - 1).int().argmax())))


@lru_cache(maxsize=4)
def _window(seed: int, epoch: int, size: int, window: int) -> Int[Tensor, " samples"]:
    """The samples of a window in their order."""
    blocks = _blocks(seed, epoch, size)
    chosen = blocks.order[blocks.first_block(window) : blocks.first_block(window + 1)].long()
    samples = (BLOCK * chosen[:, None] + torch.arange(BLOCK)).flatten()
    samples = samples[samples < size]
    return samples[torch.randperm(len(samples), generator=generator_for(seed, "window", epoch, window))]


def coins(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A fair coin for each (seed, epoch, sample): the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    keys = {int(epoch): seed_from(seed, "flip", int(epoch)) for epoch in np.unique(epochs)}
    x = np.array([keys[int(epoch)] for epoch in epochs], dtype=np.uint64)
    x += indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(63)).astype(bool)
