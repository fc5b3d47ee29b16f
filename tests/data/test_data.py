import numpy as np
import pytest
import torch

from ditlab.core.rng import SampleNoise, generator_for, seed_from
from ditlab.data.circles import Circles, circles
from ditlab.data.digits import Digits, digit_halves
from ditlab.data.points import POINTS, Points
from ditlab.data.shuffle import sample_order


def test_discs_are_as_the_formula_says():
    """clamp(r − distance + 0.5, 0, 1) at pixel centres, +1 on −1, recomputed pixel by pixel."""
    discs = circles(20, generator_for(0))
    assert discs.images.shape == (20, 1, 16, 16)
    for image, cx, cy, r in zip(*discs, strict=True):
        for row in range(16):
            for column in range(16):
                distance = ((column + 0.5 - cx) ** 2 + (row + 0.5 - cy) ** 2) ** 0.5
                value = min(max(float(r - distance) + 0.5, 0.0), 1.0)
                assert float(image[0, row, column]) == pytest.approx(2 * value - 1, abs=1e-5)


def test_discs_lie_inside_and_fill_their_range():
    _, cx, cy, r = circles(20_000, generator_for(1))
    for centre in (cx, cy):
        assert (centre - r >= -1e-5).all()
        assert (centre + r <= 16 + 1e-5).all()
        assert centre.mean() == pytest.approx(8, abs=0.05)
    assert (r.min(), r.max()) == (pytest.approx(2.5, abs=0.01), pytest.approx(6.5, abs=0.01))
    assert r.mean() == pytest.approx(4.5, abs=0.03)


@pytest.mark.parametrize("name", POINTS)
def test_points_fill_the_square_they_promise(name):
    x = POINTS[name](20_000, generator_for(2))
    assert x.shape == (20_000, 2)
    assert x.abs().max() < 2.4
    assert (x.std(0) > 0.4).all()
    assert x.mean(0).abs().max() < 0.4
    assert torch.equal(x, POINTS[name](20_000, generator_for(2)))


def test_eight_gaussians():
    x = POINTS["gaussians"](40_000, generator_for(3))
    which = ((torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)).round() % 8).long()
    assert which.bincount().tolist() == pytest.approx([5000] * 8, rel=0.06)
    for k in range(8):
        group = x[which == k]
        assert group.std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.06)
        assert float(group.mean(0).norm()) == pytest.approx(1.5, abs=0.01)


def test_checkerboard_squares():
    x = POINTS["checkerboard"](10_000, generator_for(4))
    column, row = (x + 2).floor().long().unbind(1)
    assert ((column + row) % 2 == 0).all()
    assert (column * 4 + row).bincount(minlength=16).gt(0).sum() == 8


def test_digit_halves_are_disjoint_and_alike():
    from sklearn.datasets import load_digits

    a, b = digit_halves()
    assert (len(a.labels), len(b.labels)) == (898, 899)
    source = load_digits()
    both = torch.cat([a.images, b.images])[:, 0].numpy()
    ours = sorted(map(bytes, ((both + 1) * 8).round().astype(np.uint8)))
    assert ours == sorted(map(bytes, source.images.astype(np.uint8)))
    assert (a.labels.bincount() - b.labels.bincount()).abs().max() <= 1
    assert (both.min(), both.max()) == (-1, 1)


@pytest.mark.parametrize("batch", [1, 7, 100, 250])
def test_every_sample_once_an_epoch_from_any_position(batch):
    """The order is a function of the position: cut anywhere, it goes on as if it had not been."""
    size, total = 100, 1000
    whole = sample_order(5, 0, total, size)
    for epoch in whole.reshape(-1, size):
        assert sorted(epoch.tolist()) == list(range(size))
    assert not torch.equal(whole[:size], whole[size : 2 * size])
    pieces = [sample_order(5, i, min(batch, total - i), size) for i in range(0, total, batch)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(sample_order(6, 0, size, size), whole[:size])


@pytest.mark.parametrize("data", [Circles(), Points("moons"), Digits()], ids=lambda d: type(d).__name__)
def test_batches_are_a_function_of_seed_and_position(data):
    first, again, later = data.batch(0, 640, 32), data.batch(0, 640, 32), data.batch(0, 672, 32)
    assert first.x0.shape == (32, *data.shape)
    assert torch.equal(first.x0, again.x0)
    assert not torch.equal(first.x0, later.x0)
    assert not torch.equal(first.x0, data.batch(1, 640, 32).x0)
    assert ("label" in first.cond) == ("label" in data.conditions)


def test_digits_batches_come_from_half_a_with_their_own_labels():
    a = digit_halves()[0]
    known = {bytes(image.numpy().tobytes()): int(label) for image, label in zip(*a, strict=True)}
    x0, cond = Digits().batch(0, 0, 2000)
    for image, label in zip(x0, cond["label"], strict=True):
        assert known[image.numpy().tobytes()] == label


def test_seeds_differ_for_different_parts():
    seeds = {seed_from(a, b, c) for a in range(20) for b in range(20) for c in ("x", "y")}
    assert len(seeds) == 800
    assert len({s & 0xFFFFFFFF for s in seeds}) == 800
    assert seed_from(1, 23) != seed_from(12, 3)


def test_noise_of_a_sample_depends_on_seed_and_number_alone():
    like = torch.empty(0)
    whole = SampleNoise(7, range(10), (3, 4), like)
    part = SampleNoise(7, [4, 9], (3, 4), like)
    for _ in range(3):
        assert torch.equal(whole()[[4, 9]], part())
    many = SampleNoise(0, range(2000), (50,), like)()
    assert many.mean() == pytest.approx(0, abs=0.02)
    assert many.std() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(many).fill_diagonal_(0).abs().max() < 0.8
