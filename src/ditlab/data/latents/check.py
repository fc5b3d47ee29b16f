"""A whole look at a store of latents: every byte is compared with the index, and every mean is counted in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ditlab.core.errors import InputError
from ditlab.data.images.source import Progress
from ditlab.data.latents.dataset import check_size, read_rejected
from ditlab.data.latents.encode import sha256_of
from ditlab.data.latents.index import Index, read_index
from ditlab.data.latents.shards import OpenShard


@dataclass
class StoreReport:
    """What was found in a store.

    Attributes:
        damaged: what is wrong with its shards, a line each.
        bad: how many images could not be encoded.
        classes: latents of each class; empty without labels.
        mean, std: of each channel of the scaled draws, (z − shift)·scale, over images, height and width.
        posterior_std: root mean square of the posteriors' standard deviations, scaled.
    """

    index: Index
    damaged: list[str] = field(default_factory=list)
    bad: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    posterior_std: float = 0.0


def check_store(path: str | Path, progress: Progress | None = None) -> StoreReport:
    """Read a whole store; see ``read_index`` for what it raises."""
    folder = Path(path)
    index = read_index(folder)
    report = StoreReport(index, bad=len(read_rejected(str(folder))))
    report.classes = dict.fromkeys(index.classes or (), 0)
    sums = np.zeros((3, index.shape[0]))  # of the mean, its square and the variance
    seen = 0
    for number, known in enumerate(index.shards):
        try:
            check_size(folder, known.file, known.bytes)
            if sha256_of(folder / known.file) != known.sha256:
                raise InputError(f"{folder / known.file} is damaged: its sha256 is not the index's; remove it")
            if known.rows:
                shard = OpenShard(folder / known.file, index, known.rows)
                sums += _sums(shard, index)
                seen += known.rows
                for label, count in Counter(() if shard.labels is None else shard.labels.tolist()).items():
                    report.classes[(index.classes or ())[label]] += count
        except InputError as error:
            report.damaged.append(str(error))
        if progress is not None:
            progress(number + 1, len(index.shards))
    mean, square, variance = sums / max(1, seen * index.shape[1] * index.shape[2])
    spread = np.sqrt(np.maximum(0, square - mean**2 + variance))
    report.mean = ((mean - index.latent_shift) * index.latent_scale).tolist()
    report.std = (spread * index.latent_scale).tolist()
    report.posterior_std = float(np.sqrt(variance.mean()) * index.latent_scale)
    return report


def _sums(shard: OpenShard, index: Index) -> np.ndarray:
    """Sums (3, C) over a shard of the mean, its square and the variance."""
    mean, std = (
        shard.latents[name].reshape(-1, index.shape[0], index.shape[1] * index.shape[2]) for name in ("mean", "std")
    )
    total = np.zeros((3, index.shape[0]))
    for m, s in zip(mean, std, strict=True):  # row by row, for memory
        a, b = m.astype(np.float64), s.astype(np.float64)
        total += np.stack([a.sum(1), (a * a).sum(1), (b * b).sum(1)])
    return total
