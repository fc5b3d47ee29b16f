"""scikit-learn's 1,797 handwritten digits, 8×8 pixels, in two halves: one to generate from, one to judge with."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.data.conditions import Conditions, labelled
from ditlab.data.dataset import Batch
from ditlab.data.shuffle import sample_order


class LabelledImages(NamedTuple):
    """Images in [−1, 1] and their class numbers."""

    images: Float[Tensor, "n 1 8 8"]
    labels: Int[Tensor, " n"]


@cache
def digit_halves() -> tuple[LabelledImages, LabelledImages]:
    """Half A (898 images, for generators) and half B (899, for judges): disjoint, fixed, alike in labels."""
    from sklearn.datasets import load_digits  # takes longer to import than all else that a worker process needs
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy((source.images / 8 - 1).astype(np.float32))[:, None]
    labels = torch.from_numpy(source.target.astype(np.int64))
    a, b = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=0, stratify=source.target)
    return LabelledImages(images[a], labels[a]), LabelledImages(images[b], labels[b])


class Digits:
    """Half A of the handwritten digits, in an order that is a function of the seed."""

    shape: tuple[int, ...] = (1, 8, 8)
    conditions: Conditions = labelled(10)
    levels: int | None = 17

    def __len__(self) -> int:
        return len(digit_halves()[0].labels)

    def batch(self, seed: int, position: int, size: int) -> Batch:
        images, labels = digit_halves()[0]
        chosen = sample_order(seed, position, size, len(labels))
        return Batch(images[chosen], {"label": labels[chosen]})

    def held_out(self, seed: int, n: int) -> Batch:
        images, labels = digit_halves()[1]
        chosen = sample_order(seed, 0, min(n, len(labels)), len(labels))
        return Batch(images[chosen], {"label": labels[chosen]})
