"""Fréchet and kernel distances, and what neighbours tell: against torchmetrics, closed forms, and plain loops."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

from ditlab.core.rng import generator_for
from ditlab.evaluation.metrics.comparison import Reference
from ditlab.evaluation.metrics.frechet import Moments, frechet, frechet_interval
from ditlab.evaluation.metrics.intervals import share_interval
from ditlab.evaluation.metrics.kid import kernel_distance, kernel_interval
from ditlab.evaluation.metrics.memorisation import Bank, memorised
from ditlab.evaluation.metrics.precision_recall import manifolds, nearest, neighbour_distances


def cloud(n, d, *seed):
    return torch.randn(n, d, generator=generator_for(*seed))


def unlike(n=600, d=12):
    return cloud(n - 50, d, 5), cloud(n, d, 6) @ torch.diag(torch.linspace(0.5, 2, d)) + 0.2


class Flat(nn.Module):
    """Features that are what is given, for torchmetrics."""

    num_features = 12

    def forward(self, x):
        return x.flatten(1)


def fed(metric, x, y):
    metric.set_dtype(torch.float64)
    for real, rows in ((True, y), (False, x)):
        metric.update(rows.double()[:, :, None, None], real=real)
    return metric


def test_the_frechet_distance_is_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = unlike()
    theirs = fed(FrechetInceptionDistance(Flat(), normalize=True, input_img_size=(12, 1, 1)), x, y).compute()
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(float(theirs), rel=1e-4)


def test_the_kernel_distance_is_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = unlike()
    y = y[: len(x)]
    theirs, spread = fed(KernelInceptionDistance(Flat(), subsets=2, subset_size=len(x), normalize=True), x, y).compute()
    assert float(spread) == pytest.approx(0, abs=1e-9)  # subsets of everything
    assert kernel_distance(x, y) == pytest.approx(float(theirs), rel=1e-4)


def test_the_frechet_distance_of_known_gaussians():
    """Between N(μ, diag(a²)) and N(0, diag(b²)) it is |μ|² + Σ(a − b)²."""
    d = 6
    exact = torch.eye(d).repeat(2, 1) * math.sqrt(d)  # ± unit vectors: mean 0, covariance 1
    exact[d:] *= -1
    a, b, mu = torch.linspace(0.1, 3, d), torch.linspace(2, 0, d), torch.arange(float(d))  # b ends singular
    n = 2 * d / (2 * d - 1)  # the unbiased estimate of the covariance is so much larger
    found = frechet(Moments.of(exact * a + mu), Moments.of(exact * b))
    assert found == pytest.approx(float(mu.square().sum() + n * (a - b).square().sum()), rel=1e-6)
    assert frechet(Moments.of(exact * b + 1e4), Moments.of(exact * b + 1e4)) == pytest.approx(0, abs=1e-9)


def test_moments_do_not_depend_on_how_they_were_gathered():
    x = cloud(3000, 7, 1).double() @ cloud(7, 7, 2).double() + 1e3
    whole = Moments.of(x)
    torch.testing.assert_close(whole.covariance, x.T.cov(), rtol=1e-10, atol=0)
    for sizes in ((1,) * 5 + (2995,), (1500, 1500), (2999, 1)):
        parts = [Moments.of(part) for part in x.split(sizes)]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merged(part)
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-10, atol=0)


def test_the_kernel_distance_has_no_bias():
    """Its mean over draws from one distribution is 0, where the biased estimate is far above."""
    draws = torch.tensor([kernel_distance(cloud(20, 4, "x", i), cloud(20, 4, "y", i)) for i in range(400)])
    assert abs(draws.mean()) < 3 * draws.std() / 20
    assert draws.std() > 0.05


def test_the_interval_of_a_frechet_distance_ignores_what_never_changes():
    """As pixels at the edge of all digits do, of samples or of data alone, too."""
    x, y = unlike()
    told = frechet_interval(x, y)
    flat = [torch.cat([z, torch.zeros(len(z), 2)], 1) for z in (x, y)]
    assert frechet_interval(*flat).interval == pytest.approx(told.interval, rel=1e-6)
    x[:, 0] = y[:, 1] = 0
    low, high = frechet_interval(x, y).interval
    assert 0 < low < high


def test_shares_of_nothing_and_of_all_are_not_certain():
    """Wilson's interval (1927) of 0 of n ends at z²/(n + z²)."""
    high = 1.959964**2 / (50 + 1.959964**2)
    assert share_interval(torch.zeros(50)) == pytest.approx([0, high], abs=1e-6)
    assert share_interval(torch.ones(50)) == pytest.approx([1 - high, 1], abs=1e-6)
    low, high = share_interval((torch.arange(400) < 100).double())
    assert (0.25 - low, high - 0.25) == pytest.approx((0.042, 0.042), abs=0.004)


def balls(centres, others, k):
    """The distance of each centre to its k-th nearest other one, and all distances to the others."""
    radius = [sorted(math.dist(c, o) for j, o in enumerate(centres) if j != i)[k - 1] for i, c in enumerate(centres)]
    return radius, [[math.dist(c, o) for o in others] for c in centres]


def test_neighbours_are_those_of_plain_loops():
    x, y = cloud(70, 3, "x").double() * 1.3 + 0.5, cloud(90, 3, "y").double()
    fake, real = x.tolist(), y.tolist()
    near, apart = balls(real, fake, 3)
    reach, back = balls(fake, real, 3)
    wide, _ = balls(real, fake, 5)
    found = manifolds(x, y)
    every, data = range(len(fake)), range(len(real))
    assert found.precision.tolist() == [any(apart[j][i] <= near[j] for j in data) for i in every]
    assert found.recall.tolist() == [any(back[i][j] <= reach[i] for i in every) for j in data]
    assert found.density.tolist() == [sum(apart[j][i] <= wide[j] for j in data) / 5 for i in every]
    assert found.coverage.tolist() == [any(apart[j][i] <= wide[j] for i in every) for j in data]
    assert neighbour_distances(y, (3, 5))[:, 1].tolist() == pytest.approx(wide, rel=1e-7)
    three = nearest(x, y, 3)
    expected = [sorted(data, key=lambda j, i=i: apart[j][i])[:3] for i in every]
    assert three.numbers.tolist() == expected


def test_neighbours_do_not_depend_on_blocks(monkeypatch):
    x, y = cloud(300, 4, "x"), cloud(200, 4, "y")
    whole = manifolds(x, y), nearest(x, y, 4).numbers, kernel_distance(x, y), kernel_interval(x, y).interval
    monkeypatch.setattr("ditlab.evaluation.metrics.precision_recall.HELD", 1000)
    monkeypatch.setattr("ditlab.evaluation.metrics.kid.ROWS", 7)
    for a, b in zip(whole[0], manifolds(x, y), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole[1], nearest(x, y, 4).numbers)
    assert kernel_distance(x, y) == pytest.approx(whole[2], rel=1e-10)
    assert kernel_interval(x, y).interval == pytest.approx(whole[3], rel=1e-8)


def test_samples_as_good_as_data_score_as_data_do():
    reference = Reference(cloud(2000, 3, "data"), cloud(1000, 3, "others"))
    good, narrow, off = (
        reference.figures(x) for x in (cloud(1000, 3, 0), cloud(1000, 3, 0) * 0.2, cloud(1000, 3, 0) + 9)
    )
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name] == pytest.approx(good[f"{name}_real"], abs=0.05)
        low, high = good[f"{name}_interval"]
        assert low <= good[name] <= high
    assert abs(good["frechet"] - good["frechet_floor"]) < 0.02
    assert narrow["precision"] > 0.9 > 0.3 > narrow["recall"]
    assert narrow["density"] > 0.8 > 0.5 > narrow["coverage"]
    assert (off["precision"], off["recall"], off["density"], off["coverage"]) == (0, 0, 0, 0)
    assert off["frechet"] == pytest.approx(3 * 81, rel=0.05)


@pytest.mark.parametrize(("samples", "data"), [(3, 4), (2, 2), (2, 1), (9, 1), (9, 3)])
def test_few_have_fewer_figures_and_all_are_numbers(samples, data):
    few = Reference(cloud(data, 3, 0), cloud(data, 3, 1)).figures(cloud(samples, 3, 2))
    few |= copying(Bank(cloud(data, 3, 0)), cloud(samples, 3, 1))
    assert "precision" not in few
    assert ("kernel" in few) == (data > 1)
    assert "frechet" not in few
    assert ("frechet_floor" in few) == (data > 3)
    json.dumps(few, allow_nan=False)


def copying(bank, samples):
    return memorised(bank, bank.nearest(samples, 2))


def test_copies_are_found_and_strangers_are_not():
    data = cloud(500, 5, "data")
    bank = Bank(data)
    loops = [min(math.dist(a, b) for b in data.tolist() if b != a) for a in data.tolist()]
    assert bank.apart.tolist() == pytest.approx(loops, rel=1e-5)
    assert copying(bank, data[:200] + 1e-3)["memorisation_ratio"] < 0.01
    assert copying(bank, cloud(200, 5, "new"))["memorisation_ratio"] == pytest.approx(1, abs=0.15)
    turned = data.flip(1)
    assert copying(Bank(data, turned), turned[:200])["memorisation_ratio"] < 1e-5
    assert copying(bank, turned[:200])["memorisation_ratio"] > 0.5
    numbers = Bank(data, turned).nearest(turned[:3], 1).numbers[:, 0]
    assert numbers.tolist() == [0, 1, 2]
    twice = copying(Bank(torch.cat([data, data])), torch.cat([data[:9], cloud(9, 5, "new")]))
    assert twice["nearest_training_image_held_out"] == pytest.approx(0, abs=1e-5)
    assert "memorisation_ratio" not in twice
    assert (twice["copied"], twice["copied_real"]) == (0.5, 1)  # of which all data are copies themselves


def test_a_few_copies_among_many_samples_are_counted():
    """The median does not tell them."""
    data, new = cloud(2000, 5, "data"), cloud(1000, 5, "new")
    honest, some = (copying(Bank(data), x) for x in (new, torch.cat([new[:600], data[:400]])))
    assert some["memorisation_ratio"] > 0.6
    low, high = honest["copied_interval"]
    assert low < 0.01 < high
    assert honest["copied_real"] == pytest.approx(0.01, abs=0.001)
    assert some["copied"] == pytest.approx(0.4 + 0.6 * honest["copied"], abs=0.01)
    assert some["copied_interval"][0] > 0.35
    assert (some["memorisation_n"], some["memorisation_training_n"]) == (1000, 2000)
    apart = Bank(data, held_out=new).apart
    assert torch.equal(apart, Bank(data).nearest(new, 1).distances[:, 0])


def test_intervals_depend_on_their_seed_alone():
    x, y = unlike(100)
    reference = Reference(y)
    assert reference.figures(x, 1) == reference.figures(x, 1)
    pairs = itertools.combinations([reference.figures(x, seed)["density_interval"] for seed in range(3)], 2)
    assert all(a != b for a, b in pairs)
