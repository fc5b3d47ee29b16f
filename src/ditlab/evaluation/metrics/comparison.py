"""Compare features of samples with those of data, and other data with the same data as the floor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from scipy import special
from torch import Tensor

from ditlab.evaluation.metrics.frechet import Moments, frechet, frechet_interval
from ditlab.evaluation.metrics.intervals import Interval, around, score_interval, share_interval
from ditlab.evaluation.metrics.kid import SUBSETS, kernel_distance, kernel_interval
from ditlab.evaluation.metrics.precision_recall import WIDE, Manifolds, manifolds, spread

FEWEST = 2 * (WIDE + 1)  # rows of each set, so that halves of them have enough neighbours
MOST = 10_000  # rows of each set that are compared in pairs


@dataclass(frozen=True)
class Reference:
    """Features of data to compare with (m, D) and, for the floors, of other data (n, D).

    Neighbours are counted among equally many samples, data and others, as more rows bring neighbours closer.
    """

    data: Tensor
    others: Tensor | None = None

    @cached_property
    def moments(self) -> Moments:
        """Mean and scatter of the data."""
        return Moments.of(self.data)

    @cached_property
    def floors(self) -> dict[str, float]:
        """The scores of real data."""
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
        """All figures of samples with intervals and floors, except those that need more samples."""
        found: dict[str, Any] = {}
        if _enough(samples, self.data):
            distance = frechet_interval(samples, self.data, seed)
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
            count = len(parts.precision)
            variances, freedom = spread(samples[:count], self.data[:count], seed)
            for (name, values), variance in zip(parts._asdict().items(), variances.tolist(), strict=True):
                value = float(values.mean())
                if name == "density":  # an average number of balls; all others are shares
                    interval = around(value, variance, freedom)
                else:
                    interval = _share_around(value, variance, count, freedom)
                found |= {name: value, f"{name}_interval": interval}
            found["neighbours_n"] = count
        return found | self.floors

    def _manifolds(self, samples: Tensor) -> Manifolds | None:
        """Manifolds of equally many samples and data, at most 10,000; None if they are too few."""
        others = MOST if self.others is None else len(self.others)
        count = min(len(samples), len(self.data), others, MOST)
        return manifolds(samples[:count], self.data[:count]) if count >= FEWEST else None


def _share_around(share: float, variance: float, n: int, freedom: int) -> Interval:
    """The interval of a share of n hits that depend on each other through common neighbours.

    It spans Student's interval and the score interval of as many independent hits as have this variance: near 0 and 1
    hits come in clusters, and each alone is too narrow on one side. If all hits are equal, the variance is that of n
    independent ones.
    """
    alone = share * (1 - share) / n
    variance = max(variance, alone)
    scored = score_interval(share, n * alone / variance if alone else n, float(special.stdtrit(freedom, 0.975)))
    low, high = around(share, variance, freedom)
    return [max(0.0, min(low, scored[0])), min(1.0, max(high, scored[1]))]


def _enough(samples: Tensor, data: Tensor) -> bool:
    """Whether both have more rows than features, so that their covariances can be regular."""
    return min(len(samples), len(data)) > data.shape[1]


def judged(found: Tensor, asked: Tensor) -> dict[str, Any]:
    """How often a judge finds the requested label, in total and for each label."""
    right = (found == asked).double()
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": share_interval(right),
        "accuracy_by_label": {str(k): float(right[asked == k].mean()) for k in sorted(set(asked.tolist()))},
    }
