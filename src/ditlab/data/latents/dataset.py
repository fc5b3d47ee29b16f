"""Latents as a data set: batches as a function of (seed, position), out of a store. Needs no autoencoder."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.rng import sample_streams, seed_from
from ditlab.data.conditions import labelled
from ditlab.data.dataset import Batch
from ditlab.data.images.cache import write_rejected
from ditlab.data.images.labels import json_object
from ditlab.data.images.source import Progress, Rejected
from ditlab.data.latents.index import Index, read_index
from ditlab.data.latents.shards import OpenShard
from ditlab.data.shuffle import coins, sample_order

MOST_OPEN = 384  # shards that are mapped at a time: each holds a file open, of which a process may have 1,024


class Latents:
    """Draws from the posteriors of a store, scaled, with labels where there are classes.

    A sample is (mean + std·ε − shift)·scale, with ε a function of (seed, epoch, image). Nothing is opened before it is
    needed, so that a run can be sampled without its store.

    Args:
        flip: whether half of the latents are those of mirrored images, each epoch other ones.
        vae, digest: which autoencoder made them, in words and as a sha256; the others as in ``LatentsData``.
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, int, int],
        classes: tuple[str, ...] | None = None,
        flip: bool = False,
        scale: float = 1.0,
        shift: float = 0.0,
        vae: str | None = None,
        digest: str | None = None,
    ) -> None:
        self.path, self.classes, self.flip = path, classes, flip
        self.shape: tuple[int, ...] = shape
        self.scale, self.shift, self.vae, self.digest = scale, shift, vae, digest
        self.conditions = labelled(classes)
        self._index: Index | None = None
        self._ends: np.ndarray = np.empty(0, np.int64)  # of the shards, in rows of the store
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def prepare(self, quarantine: Path | None = None, progress: Progress | None = None) -> str:
        """See that the store is the one that is meant, and all its files are there; return its fingerprint.

        The sizes of all shards are compared with the index; ``ditlab data check`` compares their sha256, too.

        ``quarantine`` is a file to list in the images that could not be encoded.

        Raises:
            InputError: the store is gone, damaged, or of another autoencoder, scale, shift, shape or classes.
        """
        index = self.index
        for i, shard in enumerate(index.shards):
            check_size(Path(self.path), shard.file, shard.bytes)
            if progress is not None:
                progress(i + 1, len(index.shards))
        if quarantine is not None:
            write_rejected(quarantine, read_rejected(self.path))
        return self.fingerprint

    @property
    def index(self) -> Index:
        """What the store says of itself; ``InputError`` if it is not what this data set was made for."""
        if self._index is None:
            if not Path(self.path).exists():
                raise InputError(
                    f"there is no store of latents at {self.path} any more. Put it back, or give its new place with "
                    f"ditlab train --resume RUN --data.path PATH"
                )
            index = read_index(self.path)
            self._compare(index)
            self._index, self._ends = index, np.cumsum([shard.rows for shard in index.shards], dtype=np.int64)
        return self._index

    def _compare(self, index: Index) -> None:
        facts = {
            "latents of the VAE": (self.vae and f"{self.vae} (sha256 {str(self.digest)[:12]})", str(index.vae)),
            "the scale": (self.scale, index.latent_scale),
            "the shift": (self.shift, index.latent_shift),
            "the shape": (tuple(self.shape), index.shape),
            "the classes": (self.classes, index.classes),
        }
        same_vae = self.digest is None or self.digest == index.vae.digest
        for name, (own, there) in facts.items():
            if same_vae if name == "latents of the VAE" else own == there:
                continue
            words = ("others", "its own") if name == "the classes" else (own, there)
            raise InputError(
                f"the store {self.path} is not the one that this run was made for: {name} was {words[0]} and is "
                f"{words[1]}; bring that one back, or train a new run"
            )
        if self.flip and not index.mirrored:
            raise InputError(
                f"{self.path} has no mirrored latents: drop --data.flip, or encode it without --no-mirrored"
            )

    @property
    def fingerprint(self) -> str:
        """Of everything in the store: the same as long as it is the same."""
        return f"{len(self):,} latents, {self.index.digest[:16]}"

    def content(self) -> str:
        """The fingerprint, which tells of every byte."""
        return self.fingerprint

    def __len__(self) -> int:
        return self.index.count

    def name(self, index: int) -> str:
        """What the image of that latent was called in its folder or table."""
        shard, row = self._find(np.array([index]))
        return self._shard(int(shard[0])).name(int(row[0]))

    def indices(self, seed: int, position: int, size: int) -> Int[Tensor, " size"]:
        """The numbers of the latents in ``batch`` of the same arguments."""
        return sample_order(seed, position, size, len(self))

    def batch(self, seed: int, position: int, size: int) -> Batch:
        chosen = self.indices(seed, position, size).numpy()
        epochs = (position + np.arange(size)) // len(self)
        mirrored = coins(seed, epochs, chosen) if self.flip else np.zeros(size, bool)
        x0, labels = self.draw(seed, epochs, chosen, mirrored)
        return Batch(x0, {} if labels is None else {"label": torch.from_numpy(labels)})

    def draw(
        self, seed: int, epochs: np.ndarray, chosen: np.ndarray, mirrored: np.ndarray
    ) -> tuple[Float[Tensor, "B C H W"], np.ndarray | None]:
        """One draw (seed, epoch) from the posterior of each chosen latent or its mirror image, scaled; the labels."""
        mean, std, labels = self._rows(chosen, mirrored)
        for epoch in np.unique(epochs):
            own = np.flatnonzero(epochs == epoch)
            streams = sample_streams(seed_from(seed, "posterior", int(epoch)), chosen[own].tolist())
            for i, stream in zip(own, streams, strict=True):
                std[i] *= stream.standard_normal(std.shape[1], dtype=np.float32)
        z = torch.from_numpy(mean).add_(torch.from_numpy(std)).sub_(self.shift).mul_(self.scale)
        return z.reshape(-1, *self.shape), labels

    def means(self, chosen: Int[Tensor, " n"]) -> Float[Tensor, "n values"]:
        """The means of latents of these numbers, flat and as they are stored: alike for copies of an image."""
        numbers = chosen.numpy()
        return torch.from_numpy(self._rows(numbers, np.zeros(len(numbers), bool))[0])

    def _rows(self, chosen: np.ndarray, mirrored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Means and standard deviations (B, C·H·W) in fp32, and labels."""
        shards, rows = self._find(chosen)
        mean, std = (np.empty((len(chosen), int(np.prod(self.shape))), np.float32) for _ in range(2))
        labels = None if self.classes is None else np.empty(len(chosen), np.int64)
        for number in np.unique(shards):
            shard = self._shard(int(number))
            for prefix, turned in (("", False), ("mirrored_", True)):
                own = np.flatnonzero((shards == number) & (mirrored == turned))
                if len(own):
                    mean[own] = shard.latents[f"{prefix}mean"][rows[own]]
                    std[own] = shard.latents[f"{prefix}std"][rows[own]]
            if labels is not None and shard.labels is not None:
                own = np.flatnonzero(shards == number)
                labels[own] = shard.labels[rows[own]]
        return mean, std, labels

    def _find(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard and the row in it of each latent."""
        index = self.index
        shards = np.searchsorted(self._ends, chosen, side="right")
        starts = self._ends - np.array([shard.rows for shard in index.shards])
        return shards, chosen - starts[shards]

    def _shard(self, number: int) -> OpenShard:
        """A shard, opened if it is not; the one that was not used for longest is closed."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        known = self.index.shards[number]
        check_size(Path(self.path), known.file, known.bytes)
        self._open[number] = OpenShard(Path(self.path) / known.file, self.index, known.rows)
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped into memory: a worker process maps it for itself."""
        return {**self.__dict__, "_open": OrderedDict()}


def check_size(folder: Path, file: str, size: int) -> None:
    """Raise ``InputError`` unless a shard is there and has its size."""
    path = folder / file
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        wrong = "is missing" if found is None else f"is damaged: it has {found:,} bytes, not {size:,}"
        raise InputError(
            f"{path} {wrong}; bring it back from a copy, or give the ditlab latents encode that made the store again, "
            f"which makes what is missing anew"
        )


def read_rejected(path: str) -> list[Rejected]:
    """The images that could not be encoded into a store; a line that is damaged is told in the place of its image.

    Nothing is trained on by this list, so that nothing is refused for it.
    """
    file = Path(path) / "quarantine.jsonl"
    lines = file.read_bytes().splitlines() if file.is_file() else []
    return [
        Rejected(name, reason)
        if isinstance(name := entry.get("path"), str) and isinstance(reason := entry.get("reason"), str)
        else Rejected(str(file), f"line {i} is damaged")
        for i, entry in enumerate(map(json_object, lines), 1)
    ]
