"""The figures of two sets of features: of samples against data, and of data against data as their floor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ditlab.evaluation.intervals import mean_interval, median_interval, share_interval
from ditlab.evaluation.kernel import SUBSETS, kernel_distance, kernel_interval
from ditlab.evaluation.moments import Moments, frechet, frechet_interval
from ditlab.evaluation.neighbours import WIDE, Manifolds, Nearest, manifolds, nearest

MOST = 10_000  # of each set, of which pairs are compared
PROBES = 2000  # of what was trained on, whose distance to the rest is measured
NEAR = 0.01  # share of held-out data that lie as near to what was trained on as what counts as a copy
SAME = 1e-6  # of how far the data spread: what is nearer is the same but for rounding


@dataclass(frozen=True)
class Reference:
    """Features of data to compare with (m, D), and of other data in the place of samples (n, D), if there are any.

    Neighbours are counted among as many of each, samples, data and others, for with more of them all are nearer.
    """

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
        found = {}
        if _enough(self.others, self.data):
            found["frechet_floor"] = frechet(Moments.of(self.others), self.moments)
        if min(len(self.others), len(self.data)) > 1:
            found["kernel_floor"] = kernel_distance(self.others[:MOST], self.data[:MOST])
        if (parts := self._manifolds(self.others)) is not None:
            found |= {f"{name}_real": float(values.mean()) for name, values in parts._asdict().items()}
        return found

    def figures(self, samples: Float[Tensor, "n d"], seed: int = 0) -> dict[str, Any]:
        """All figures of samples, with their intervals and floors; those that need more samples are left out."""
        found: dict[str, Any] = {}
        if _enough(samples, self.data):
            distance = frechet_interval(samples, self.moments)
            found |= {"frechet": distance.value, "frechet_interval": distance.interval}
        if len(self.data) > 1:
            pairs = kernel_interval(samples[:MOST], self.data[:MOST], seed)
            found |= {
                "kernel": pairs.value,
                "kernel_interval": pairs.interval,
                "kernel_subset_mean": pairs.subset_mean,
                "kernel_subset_std": pairs.subset_std,
                "kernel_subsets": f"{SUBSETS} of {pairs.subset_size}",
                "kernel_n": min(len(samples), MOST),
            }
        if (parts := self._manifolds(samples)) is not None:
            for name, values in parts._asdict().items():
                # a sample lies in many balls or in none, all others are shares
                interval = mean_interval(values, seed, name) if name == "density" else share_interval(values)
                found |= {name: float(values.mean()), f"{name}_interval": interval}
            found["neighbours_n"] = len(parts.precision)
        return found | self.floors

    def _manifolds(self, samples: Tensor) -> Manifolds | None:
        """Of as many of each, up to 10,000; None if they are too few to have neighbours."""
        others = MOST if self.others is None else len(self.others)
        count = min(len(samples), len(self.data), others, MOST)
        return manifolds(samples[:count], self.data[:count]) if count > WIDE else None


def _enough(samples: Tensor, data: Tensor) -> bool:
    """Whether there are more of both than there are features, so that covariances are not singular for want of them."""
    return min(len(samples), len(data)) > data.shape[1]


def judged(found: Tensor, asked: Tensor) -> dict[str, Any]:
    """How often a judge finds the label that was asked for, of all and of each label."""
    right = (found == asked).double()
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": share_interval(right),
        "accuracy_by_label": {str(k): float(right[asked == k].mean()) for k in sorted(set(asked.tolist()))},
    }


class Bank:
    """What was trained on, as features: rows (m, D), and the number of the datum that each is of.

    Args:
        plain, mirrored: the data, and the same data turned left to right, if that was trained on too.
        held_out: data that were not; without, each datum is compared with all others.
    """

    def __init__(
        self,
        plain: Float[Tensor, "m d"],
        mirrored: Float[Tensor, "m d"] | None = None,
        held_out: Float[Tensor, "h d"] | None = None,
    ) -> None:
        self.rows = plain if mirrored is None else torch.cat([plain, mirrored])
        self.names = torch.arange(len(plain)).repeat(1 if mirrored is None else 2)
        self.plain, self.held_out = plain, held_out

    @cached_property
    def apart(self) -> Float[Tensor, " h"]:
        """Distances of data that are no copies to the nearest datum: of held-out ones, or of each to the others.

        Of up to 2,000; none where there is but one.
        """
        if self.held_out is not None:
            return nearest(self.held_out[:PROBES], self.rows).distances[:, 0]
        probes = self.plain[: PROBES if len(self.plain) > 1 else 0]
        if not len(probes):
            return torch.zeros(0, dtype=torch.float64)
        return nearest(probes, self.rows, 1, torch.arange(len(probes)), self.names).distances[:, 0]

    def nearest(self, samples: Float[Tensor, "n d"], k: int) -> Nearest:
        """The k nearest data, by number, a datum and its mirror image counted as two."""
        found = nearest(samples, self.rows, k)
        return Nearest(found.distances, self.names[found.numbers])


def memorised(bank: Bank, distances: Float[Tensor, " n"], seed: int) -> dict[str, Any]:
    """What the distances of samples to the nearest datum tell, beside those of data that are no copies.

    ``memorisation_ratio`` is that of their medians: below 1, samples are nearer as a whole. It does not tell a few
    copies among many others; ``copied`` does, the share of samples that are nearer than all but 1 % of such data.
    """
    found: dict[str, Any] = {"nearest_training_image": float(distances.median()), "memorisation_n": len(distances)}
    found["memorisation_training_n"] = len(bank.plain)
    if not len(bank.apart):
        return found
    usual = found["nearest_training_image_held_out"] = float(bank.apart.median())
    same = SAME * float(bank.plain.double().std(0).norm())
    near = max(float(torch.quantile(bank.apart, NEAR)), same)
    copies = (distances <= near).double()
    found |= {"copied": float(copies.mean()), "copied_interval": share_interval(copies)}
    found["copied_real"] = float((bank.apart <= near).double().mean())
    if usual <= same:  # most of the data are there twice
        return found
    low, high = median_interval(distances, seed, "memorisation")
    ratio = found["nearest_training_image"] / usual
    return {**found, "memorisation_ratio": ratio, "memorisation_ratio_interval": [low / usual, high / usual]}
