"""The figures of ``ditlab eval`` for each kind of data, each with the score of real data, its floor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.rng import generator_for
from ditlab.data.circles import circles
from ditlab.data.digits import digit_halves
from ditlab.data.points import POINTS
from ditlab.evaluation.metrics.comparison import judged
from ditlab.evaluation.metrics.discs import VALID_OVERLAP, disc_overlap, disc_parameters
from ditlab.evaluation.metrics.distances import energy_distance, sliced_wasserstein
from ditlab.evaluation.metrics.intervals import share_interval

REFERENCE = 2000  # data samples to compare with
FLOOR_DRAWS = 20  # draws of data to average a floor over

Distance = Callable[[Tensor, Tensor], float]
DISTANCES: dict[str, Distance] = {"energy_distance": energy_distance, "sliced_wasserstein": sliced_wasserstein}


def measure_circles(samples: Float[Tensor, "n 1 16 16"], seed: int = 0) -> dict[str, Any]:
    """Share of valid circles, mean overlap, and energy distance of (cx, cy, r), in pixels, to 2,000 data."""
    overlap = disc_overlap(samples)
    valid = (overlap >= VALID_OVERLAP).double()
    return {
        "valid": float(valid.mean()),
        "valid_interval": share_interval(valid),
        "overlap": float(overlap.mean()),
        **_with_floor("energy_distance", disc_parameters(samples), "circles", seed),
    }


def measure_points(samples: Float[Tensor, "n 2"], name: str, seed: int = 0) -> dict[str, Any]:
    """Energy and sliced Wasserstein distance to 2,000 data points."""
    return {key: value for kind in DISTANCES for key, value in _with_floor(kind, samples, name, seed).items()}


def _fresh(name: str, n: int, seed: int, *purpose: int | str) -> Tensor:
    """Fresh data: points of that name, or the disc parameters of circles."""
    generator = generator_for(seed, "evaluation", *purpose)
    return disc_parameters(circles(n, generator).images) if name == "circles" else POINTS[name](n, generator)


def _with_floor(key: str, samples: Tensor, name: str, seed: int) -> dict[str, float]:
    """The distance from samples to data, and the mean distance of as many fresh data to the same data."""
    reference = _fresh(name, REFERENCE, seed, "reference")
    return {key: DISTANCES[key](samples, reference), f"{key}_floor": _floor(key, name, len(samples), seed)}


@lru_cache(maxsize=16)
def _floor(key: str, name: str, n: int, seed: int) -> float:
    reference = _fresh(name, REFERENCE, seed, "reference")
    draws = [DISTANCES[key](_fresh(name, n, seed, "floor", i), reference) for i in range(FLOOR_DRAWS)]
    return sum(draws) / FLOOR_DRAWS


def measure_digits(samples: Float[Tensor, "n 1 8 8"], labels: Int[Tensor, " n"]) -> dict[str, Any]:
    """Is each sample the requested digit?

    The generator was trained on half A, the judge, a support-vector machine, on half B only; its accuracy on the real
    half A is what a generator can reach at best.
    """
    judge, real = _judge()
    return {**judged(torch.from_numpy(judge.predict(_flat(samples))), labels), "accuracy_real": real}


@cache
def _judge() -> tuple[Any, float]:
    """A support-vector classifier trained on half B, and its accuracy on half A."""
    from sklearn.svm import SVC  # slow to import

    half_a, half_b = digit_halves()
    judge = SVC(gamma="scale").fit(_flat(half_b.images), half_b.labels.numpy())
    return judge, float(judge.score(_flat(half_a.images), half_a.labels.numpy()))


def measure_values(samples: Tensor, data: Tensor, others: Tensor | None) -> dict[str, Any]:
    """Sliced Wasserstein distance of samples to data, all (n, *shape); that of as many other data is its floor."""
    found = {"sliced_wasserstein": sliced_wasserstein(samples.flatten(1), data.flatten(1))}
    if others is not None:
        found["sliced_wasserstein_floor"] = sliced_wasserstein(others.flatten(1), data.flatten(1))
    return found


def _flat(images: Tensor) -> np.ndarray:
    """(n, 1, 8, 8) → (n, 64), clamped to [−1, 1]."""
    flat: np.ndarray = images.clamp(-1, 1).flatten(1).numpy()
    return flat
