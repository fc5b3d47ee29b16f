"""scikit-learn's 1,797 handwritten digits, 8×8 pixels, in two halves: one to generate from, one to judge with."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


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
