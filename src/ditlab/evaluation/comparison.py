"""The figures of two sets of features: of samples against data, and of data against data as their floor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.evaluation.intervals import mean_interval, median_interval
from ditlab.evaluation.kernel import SUBSETS, kernel_distance, kernel_interval
from ditlab.evaluation.moments import Moments, frechet, frechet_interval
from ditlab.evaluation.neighbours import WIDE, Manifolds, Nearest, manifolds, nearest

MOST = 10_000  # of each set, of which pairs are compared
PROBES = 2000  # of what was trained on, whose distance to the rest is measured


@dataclass(frozen=True)
class Reference:
    """Features of data to compare with (m, D), and of other data in the place of samples (n, D), if there are any."""

    data: Tensor
    others: Tensor | None = None

    @cached_property
    def moments(self) -> Moments:
        """Of the data."""
        return Moments.of(self.data)

    @cached_property
    def floors(self) -> dict[str, float]:
        """What real data score."""
        if self.others is None:
            return {}
        found = {"frechet_floor": frechet(Moments.of(self.others), self.moments)}
        if min(len(self.others), len(self.data)) > 1:
            found["kernel_floor"] = kernel_distance(self.others[:MOST], self.data[:MOST])
        if (parts := _manifolds(self.others, self.data)) is not None:
            found |= {f"{name}_real": float(values.mean()) for name, values in parts._asdict().items()}
        return found

    def figures(self, samples: Float[Tensor, "n d"], seed: int = 0) -> dict[str, Any]:
        """All figures of samples, with their intervals and floors; those that need more samples are left out."""
        distance = frechet_interval(samples, self.moments, seed)
        found: dict[str, Any] = {
            "frechet": distance.value,
            "frechet_interval": distance.interval,
            "frechet_replicates": distance.replicates,
        }
        if len(self.data) > 1:
            pairs = kernel_interval(samples[:MOST], self.data[:MOST], seed)
            found |= {
                "kernel": pairs.value,
                "kernel_interval": pairs.interval,
                "kernel_subset_mean": pairs.subset_mean,
                "kernel_subset_std": pairs.subset_std,
                "kernel_subsets": f"{SUBSETS} of {pairs.subset_size}",
            }
        if (parts := _manifolds(samples, self.data)) is not None:
            for name, values in parts._asdict().items():
                found |= {name: float(values.mean()), f"{name}_interval": mean_interval(values, seed, name)}
            found["neighbours_n"] = len(parts.precision)
        return found | self.floors


def _manifolds(samples: Tensor, data: Tensor) -> Manifolds | None:
    """Of as many of each, up to 10,000; None if they are too few to have neighbours."""
    count = min(len(samples), len(data), MOST)
    return manifolds(samples[:count], data[:count]) if count > WIDE else None


def judged(found: Tensor, asked: Tensor, seed: int) -> dict[str, Any]:
    """How often a judge finds the label that was asked for, of all and of each label."""
    right = (found == asked).double()
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": mean_interval(right, seed, "accuracy"),
        "accuracy_by_label": {str(k): float(right[asked == k].mean()) for k in sorted(set(asked.tolist()))},
    }


class Bank:
    """What was trained on, as features: rows (m, D), and the number of the datum that each is of."""

    def __init__(self, plain: Float[Tensor, "m d"], mirrored: Float[Tensor, "m d"] | None = None) -> None:
        self.rows = plain if mirrored is None else torch.cat([plain, mirrored])
        self.names = torch.arange(len(plain)).repeat(1 if mirrored is None else 2)
        self.plain = plain

    @cached_property
    def apart(self) -> float:
        """Median distance of a datum to the nearest of the others, of up to 2,000: as of one that was held out.

        0 where there is but one, or where most are there twice.
        """
        probes = self.plain[:PROBES]
        if len(self.plain) < 2:
            return 0.0
        return float(nearest(probes, self.rows, 1, torch.arange(len(probes)), self.names).distances.median())

    def nearest(self, samples: Float[Tensor, "n d"], k: int) -> Nearest:
        """The k nearest data, by number, a datum and its mirror image counted as two."""
        found = nearest(samples, self.rows, k)
        return Nearest(found.distances, self.names[found.numbers])


def memorised(bank: Bank, samples: Float[Tensor, "n d"], seed: int) -> dict[str, Any]:
    """Median distance of samples to the nearest datum, over that of data to the nearest other: below 1 means copies."""
    distances = bank.nearest(samples[:MOST], 1).distances[:, 0]
    found = {"nearest_training_image": float(distances.median()), "nearest_training_image_held_out": bank.apart}
    if not bank.apart:
        return found
    low, high = median_interval(distances, seed, "memorisation")
    ratio = found["nearest_training_image"] / bank.apart
    return {**found, "memorisation_ratio": ratio, "memorisation_ratio_interval": [low / bank.apart, high / bank.apart]}
