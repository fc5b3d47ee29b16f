"""What ``ditlab eval`` reports for each kind of data. Every figure comes with what real data scores: its floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import Tensor

from ditlab.chance import generator_for, seed_from
from ditlab.data.circles import circles
from ditlab.data.digits import digit_halves
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.data.points import POINTS
from ditlab.evaluation.comparison import judged
from ditlab.evaluation.distances import energy_distance, sliced_wasserstein
from ditlab.evaluation.intervals import mean_interval, median_interval
from ditlab.evaluation.shapes import VALID_OVERLAP, disc_overlap, disc_parameters

REFERENCE = 2000  # data samples to compare with
MOST_VALUES = 2**26  # of images that are compared at a time
FLOOR_DRAWS = 20  # draws of data in the place of samples, for the floors

Distance = Callable[[Tensor, Tensor], float]


def measure_circles(samples: Float[Tensor, "n 1 16 16"], seed: int = 0) -> dict[str, Any]:
    """Share of valid circles, mean overlap, and the energy distance of (cx, cy, r), in pixels, to 2,000 data."""
    overlap = disc_overlap(samples)

    def data(n: int, *purpose: int | str) -> Tensor:
        return disc_parameters(circles(n, generator_for(seed, "evaluation", *purpose)).images)

    return {
        "valid": float((overlap >= VALID_OVERLAP).double().mean()),
        "valid_interval": mean_interval((overlap >= VALID_OVERLAP).double(), seed, "valid"),
        "overlap": float(overlap.mean()),
        **_with_floor("energy_distance", energy_distance, disc_parameters(samples), data),
    }


def measure_points(samples: Float[Tensor, "n 2"], name: str, seed: int = 0) -> dict[str, Any]:
    """Energy and sliced Wasserstein distance to 2,000 data points."""

    def data(n: int, *purpose: int | str) -> Tensor:
        return POINTS[name](n, generator_for(seed, "evaluation", *purpose))

    return {
        **_with_floor("energy_distance", energy_distance, samples, data),
        **_with_floor("sliced_wasserstein", sliced_wasserstein, samples, data),
    }


def _with_floor(key: str, distance: Distance, samples: Tensor, data: Callable[..., Tensor]) -> dict[str, float]:
    """The distance from the samples to data, and the mean distance of fresh data, as many, to the same data."""
    reference = data(REFERENCE, "reference")
    draws = [distance(data(len(samples), "floor", i), reference) for i in range(FLOOR_DRAWS)]
    return {key: distance(samples, reference), f"{key}_floor": sum(draws) / FLOOR_DRAWS}


def measure_digits(samples: Float[Tensor, "n 1 8 8"], labels: Int[Tensor, " n"], seed: int = 0) -> dict[str, Any]:
    """Is each sample the digit that was asked for, and are they copies?

    The generator learned from half A. The judge, a support-vector machine, learned from half B alone; its score on the
    real half A bounds what a generator can reach. Memorisation compares the distance of a sample to its nearest image
    of half A with that of a held-out image (half B) to its own: a ratio far below 1 means copies.
    """
    half_a, half_b = digit_halves()
    judge = SVC(gamma="scale").fit(_flat(half_b.images), half_b.labels.numpy())
    nearest = NearestNeighbors(n_neighbors=1).fit(_flat(half_a.images))
    distances, held_out = (nearest.kneighbors(_flat(x))[0][:, 0] for x in (samples, half_b.images))
    to_samples, to_held_out = float(np.median(distances)), float(np.median(held_out))
    ends = median_interval(torch.from_numpy(distances), seed, "memorisation")
    return {
        **judged(torch.from_numpy(judge.predict(_flat(samples))), labels, seed),
        "accuracy_real": float(judge.score(_flat(half_a.images), half_a.labels.numpy())),
        "nearest_training_image": to_samples,
        "nearest_training_image_held_out": to_held_out,
        "memorisation_ratio": to_samples / to_held_out,
        "memorisation_ratio_interval": [end / to_held_out for end in ends],
    }


def measure_images(samples: Float[Tensor, "n C H W"], dataset: Images, seed: int = 0) -> dict[str, Any]:
    """Sliced Wasserstein distance of the pixels to as many as 2,000 images of the data.

    The data are finite: those compared with are at most half of them, and the floor is of the others.
    """
    return _against_finite(samples.clamp(-1, 1), dataset, dataset.images, seed)


def measure_latents(samples: Float[Tensor, "n C H W"], dataset: Latents, seed: int = 0) -> dict[str, Any]:
    """Sliced Wasserstein distance of scaled latents to as many as 2,000 of the data, as ``measure_images``."""

    def drawn(chosen: np.ndarray) -> Tensor:
        zeros = np.zeros(len(chosen), np.int64)
        return dataset.draw(seed_from(seed, "evaluation"), zeros, chosen, zeros.astype(bool))[0]

    return _against_finite(samples, dataset, drawn, seed)


def _against_finite(
    samples: Tensor, dataset: Images | Latents, get: Callable[[np.ndarray], Tensor], seed: int
) -> dict[str, Any]:
    """Sliced Wasserstein distance between samples and the data that ``get`` gives by number, and its floor."""
    n, values = len(dataset), math.prod(dataset.shape)
    order = dataset.indices(seed_from(seed, "evaluation"), 0, n)
    count = max(1, min(REFERENCE, n // 2))
    reference, others = order[:count], order[count:] if n > 1 else order

    def data(size: int, *purpose: int | str) -> Tensor:
        chosen = reference
        if purpose[0] == "floor":
            chosen = others[torch.randperm(len(others), generator=generator_for(seed, "evaluation", *purpose))[:size]]
        return get(chosen[: max(1, MOST_VALUES // values)].numpy()).flatten(1)

    return _with_floor("sliced_wasserstein", sliced_wasserstein, samples.flatten(1), data)


def _flat(images: Tensor) -> np.ndarray:
    """(n, 1, 8, 8) → (n, 64), clamped to [−1, 1]."""
    flat: np.ndarray = images.clamp(-1, 1).flatten(1).numpy()
    return flat
