"""Are samples copies of training data? Compares their distances to it with those of held-out data."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ditlab.evaluation.metrics.intervals import QUANTILE, Interval, added, score_interval, share_interval
from ditlab.evaluation.metrics.precision_recall import Nearest, nearest

PROBES = 2000  # most data whose distance to the training data is measured
NEAR = 0.01  # share of held-out data that are as near to the training data as a copy
SAME = 1e-6  # share of the data's spread below which distances are rounding errors


class Bank:
    """Features of the training data: rows (m, D), and for each row the number of its datum.

    Args:
        plain: features of the data.
        mirrored: features of the mirrored data, if those were used in training too.
        held_out: features of held-out data; without them each datum is compared with all others.
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
    def usual(self) -> Nearest:
        """The two nearest training data of up to 2,000 held-out data, or of training data among the others."""
        if self.held_out is not None:
            return self.nearest(self.held_out[:PROBES], 2)
        probes = self.plain[: PROBES if len(self.plain) > 1 else 0]
        if not len(probes):
            return Nearest(torch.zeros(0, 1, dtype=torch.float64), torch.zeros(0, 1, dtype=torch.long))
        found = nearest(probes, self.rows, 2, torch.arange(len(probes)), self.names)
        return Nearest(found.distances, self.names[found.numbers])

    @property
    def apart(self) -> Float[Tensor, " h"]:
        """Distances of held-out data to the nearest datum."""
        return self.usual.distances[:, 0]

    @cached_property
    def paired(self) -> Bool[Tensor, " h"]:
        """Which of them are mutual nearest neighbours, and so share a single distance."""
        numbers, own = self.usual.numbers[:, 0], torch.arange(len(self.usual.numbers))
        if self.held_out is not None or not len(own):
            return torch.zeros(len(own), dtype=torch.bool)
        return (numbers < len(own)) & (numbers[numbers.clamp(max=len(own) - 1)] == own)

    def nearest(self, samples: Float[Tensor, "n d"], k: int) -> Nearest:
        """The k nearest data by number; a datum and its mirror image count as two."""
        found = nearest(samples, self.rows, k)
        return Nearest(found.distances, self.names[found.numbers])


def memorised(bank: Bank, found: Nearest) -> dict[str, Any]:
    """Compare the distances of samples to the nearest datum with those of held-out data.

    ``memorisation_ratio`` is the ratio of the medians: below 1, samples are nearer as a whole. A few copies among many
    samples show in ``copied``, the share of samples that are nearer than all but 1 % of the held-out data.

    Args:
        bank: the training data.
        found: the two nearest data of each sample.
    """
    distances = found.distances[:, 0]
    figures: dict[str, Any] = {"nearest_training_image": float(distances.median()), "memorisation_n": len(distances)}
    figures["memorisation_training_n"] = len(bank.plain)
    if not len(bank.apart):
        return figures
    usual = figures["nearest_training_image_held_out"] = float(bank.apart.median())
    same = SAME * float(bank.plain.double().std(0).norm())
    near = max(float(torch.quantile(bank.apart, NEAR)), same)
    copies = (distances <= near).double()
    figures |= {"copied": float(copies.mean()), "copied_interval": _copied_interval(bank, distances, copies, same)}
    figures["copied_real"] = float((bank.apart <= near).double().mean())
    if usual <= same:  # most data are duplicates
        return figures
    ratio = figures["nearest_training_image"] / usual
    return {**figures, "memorisation_ratio": ratio, "memorisation_ratio_interval": _ratio_interval(bank, found, same)}


def _level(bank: Bank, share: float) -> Interval:
    """Interval of the share of all held-out data below the quantile of the available ones.

    Mutual nearest neighbours share a distance: the variance of the share below t is
    (F(1 − F) + P(mutual, below t) − P(mutual) F²)/n.
    """
    below = bank.apart <= torch.quantile(bank.apart, share)
    paired = float((bank.paired & below).double().mean()) - float(bank.paired.double().mean()) * share**2
    alone = share * (1 - share)
    return score_interval(share, len(bank.apart) * alone / (alone + max(0.0, paired)))


def _copied_interval(bank: Bank, distances: Tensor, copies: Tensor, same: float) -> Interval:
    """Interval of the share of copies, which includes the uncertainty of the threshold."""
    ends = torch.tensor(_level(bank, NEAR), dtype=torch.float64)
    nearer = torch.quantile(torch.cat([torch.zeros_like(bank.apart[:1]), bank.apart]), ends).clamp(min=same)
    moved = [float((distances <= end).double().mean()) for end in nearer.tolist()]
    low, high = added(float(copies.mean()), share_interval(copies), moved)
    return [max(0.0, low), min(1.0, high)]


def _ratio_interval(bank: Bank, found: Nearest, same: float) -> Interval:
    """Interval of a ratio of medians, from the logarithms of order statistics and the choice of training data.

    Without datum j, its nearest samples would be as far as their next datum. The jackknife over j, minus its value by
    chance, is the contribution of the training data.
    """
    ends, middles, steps = [], [], []
    for each, level in ((found, score_interval(0.5, len(found.distances))), (bank.usual, _level(bank, 0.5))):
        distances = each.distances[:, 0].clamp(min=same)
        middle = distances.median().clamp(min=same)
        low, high = torch.quantile(distances, torch.tensor(level, dtype=torch.float64))
        ends.append([math.log(min(low, middle)), math.log(max(high, middle))])
        middles.append(math.log(middle))
        next_one = each.distances[:, -1] if each.distances.shape[1] > 1 else torch.full_like(distances, torch.inf)
        moved = each.numbers[:, 0][(each.distances[:, 0] <= middle) & (next_one > middle)]
        # change of the logarithm of the median if one sample less is nearer
        slope = (ends[-1][1] - ends[-1][0]) / (level[1] - level[0]) / len(distances)
        steps.append((torch.bincount(moved, minlength=len(bank.plain)).double(), slope))
    (ours, a), (usual, b) = steps
    change = a * ours - b * usual
    chance = a**2 * float(ours.sum()) + b**2 * float(usual.sum()) + float(change.sum()) ** 2 / len(change)
    other = QUANTILE * max(0.0, float(change.square().sum()) - chance) ** 0.5
    value = middles[0] - middles[1]
    (a_low, a_high), (b_low, b_high) = ends
    by_samples = [a_low - middles[1], a_high - middles[1]]
    by_data = [middles[0] - b_high, middles[0] - b_low]
    low, high = added(value, by_samples, by_data, [value - other, value + other])
    return [math.exp(low), math.exp(high)]
