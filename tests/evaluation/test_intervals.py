"""Intervals hold what they are meant to cover, the mean over draws of samples and of data, in about 95 % of draws."""

import math
from functools import cache

import pytest
import torch
from scipy import stats

from ditlab.core.rng import generator_for
from ditlab.evaluation.metrics import kid as kernel
from ditlab.evaluation.metrics.comparison import Reference
from ditlab.evaluation.metrics.intervals import added, score_interval, squared_interval
from ditlab.evaluation.metrics.memorisation import Bank, memorised
from ditlab.evaluation.metrics.precision_recall import WIDE, manifolds

DRAWS = 60


def cloud(n, d, *seed):
    return torch.randn(n, d, generator=generator_for("intervals", *seed))


@cache
def figures(shift):
    return [Reference(cloud(50, 3, "y", i)).figures(cloud(50, 3, "x", i) + shift) for i in range(DRAWS)]


def held(rows, name, target=None):
    """How many intervals hold the target, the mean of all draws unless it is known."""
    target = sum(row[name] for row in rows) / len(rows) if target is None else target
    return sum(row[f"{name}_interval"][0] <= target <= row[f"{name}_interval"][1] for row in rows)


ENOUGH = stats.binom.ppf(0.001, DRAWS, 0.95)  # fewer are held with a chance of 1 in 1,000


@pytest.mark.parametrize("name", ["frechet", "kernel", "precision", "recall", "density", "coverage"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_of_samples_against_data_hold(monkeypatch, shift, name):
    """Where data are taken for exact, or samples and data for independent of each other, they do not."""
    monkeypatch.setattr(kernel, "SUBSETS", 2)
    assert held(figures(shift), name) >= ENOUGH


def test_targets_that_are_known_are_held(monkeypatch):
    """The discrepancy of like samples is 0. A ball misses all n samples where the 5 nearest others are data."""
    monkeypatch.setattr(kernel, "SUBSETS", 2)
    missed = math.prod((50 - 1 - i) / (2 * 50 - 1 - i) for i in range(WIDE))
    assert held(figures(0.0), "kernel", 0.0) >= ENOUGH
    assert held(figures(0.0), "coverage", 1 - missed) >= ENOUGH


def test_intervals_of_memorisation_hold():
    """A tenth of the samples are copies; threshold and training data are draws, too."""
    rows = []
    for i in range(DRAWS):
        x, plain = cloud(200, 3, "x", i), cloud(300, 3, "plain", i)
        x[torch.rand(200, generator=generator_for("copies", i)) < 0.1] = plain[0]  # copies
        bank = Bank(plain)
        rows.append(memorised(bank, bank.nearest(x, 2)))
    for name in ("copied", "memorisation_ratio"):
        assert held(rows, name) >= ENOUGH, name


@pytest.mark.parametrize("d", [1, 4])
def test_the_interval_of_a_squared_distance_is_that_of_chi_squares(d):
    """Of |μ + e|² with e ~ N(0, 1): its variance is 4|μ|² + 2d, and influence values tell 4|μ + e|²."""
    e = torch.randn(1500, d, dtype=torch.float64, generator=generator_for("chi"))
    for mu in (0.0, 1.0, 2.0, 30.0):
        values = (e + mu / d**0.5).square().sum(1).tolist()
        for off in (0.0, float(d)):
            intervals = [squared_interval(v - off, 4 * v, 2.0 * d, off) for v in values]
            covered = sum(low <= mu**2 + d - off <= high for low, high in intervals) / len(intervals)
            assert 0.93 < covered < 0.985, (mu, off)


def test_scores_are_scipys_and_squares_are_added():
    for count, of in ((0, 50), (3, 40), (40, 40), (100, 400)):
        theirs = stats.binomtest(count, of).proportion_ci(method="wilson")
        assert score_interval(count / of, of) == pytest.approx([theirs.low, theirs.high], abs=1e-12)
    assert added(1.0, [-2.0, 1.0], [-3.0, 6.0]) == [-4.0, 6.0]


def test_manifolds_of_parts_are_those_of_fewer():
    """So that figures of 11 samples have no interval, and no figure."""
    assert "density" not in Reference(cloud(40, 2, 0)).figures(cloud(11, 2, 1))
    assert "density_interval" in Reference(cloud(40, 2, 0)).figures(cloud(12, 2, 1))
    assert len(manifolds(cloud(6, 2, 0), cloud(6, 2, 1)).density) == 6
