"""What ``--nll`` measures: on which data, in which unit, beside which floor."""

import math

import pytest
import torch

import ditlab
from ditlab.core.rng import generator_for
from ditlab.data.circles import Circles
from ditlab.data.dataset import HeldOut
from ditlab.data.digits import Digits, digit_halves
from ditlab.data.points import DENSITIES, POINTS, Points
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.likelihood import quantised
from ditlab.diffusion.targets import compose
from ditlab.evaluation.metrics.likelihood import measure_likelihood
from tests.mixture import Mixture

RING = Mixture([[1.5 * math.cos(i * math.pi / 4), 1.5 * math.sin(i * math.pi / 4)] for i in range(8)], 0.1)


class Best(torch.nn.Module):
    """The true velocity of the eight Gaussians."""

    def forward(self, x, t, cond=None):
        path = FlowMatching(None).path
        x0, eps, *_ = RING.estimate(path, x.double(), t)
        return compose(FlowMatching(None).target, path(t.double()), x0, eps).to(x.dtype)


def test_the_true_process_scores_the_floor():
    process = FlowMatching(Best()).double()
    figures = measure_likelihood(process, Points("gaussians"), 200, seed=3)
    assert figures["nll"] == pytest.approx(figures["nll_floor"], abs=2e-3)
    assert figures["nll_unit"] == "nats"
    assert figures["nll_floor"] == pytest.approx(math.log(8) + math.log(2 * math.pi * math.e * 0.01), abs=0.3)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_are_those_that_points_are_drawn_from(name):
    """They integrate to 1, and predict how many points fall into each cell of a grid."""
    cells, fine = 16, 40
    axis = (torch.arange(cells * fine, dtype=torch.float64) + 0.5) / (cells * fine) * 4.8 - 2.4
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    mass = DENSITIES[name](grid).exp().reshape(cells, fine, cells, fine).sum((1, 3)) * (4.8 / (cells * fine)) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=5e-3)
    n = 100_000
    points = POINTS[name](n, generator_for(0))
    index = ((points + 2.4) / 4.8 * cells).long()
    counts = torch.zeros(cells, cells).index_put((index[:, 0], index[:, 1]), torch.ones(n), accumulate=True)
    expected = mass * n
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 0.005 * n).all()


def test_held_out_data_are_none_that_were_trained_on():
    half_b = digit_halves()[1]
    images, cond = Digits().held_out(0, 10_000)
    assert len(images) == len(half_b.images)
    assert torch.cdist(images.flatten(1), half_b.images.flatten(1)).amin(1).max() == 0
    assert len(cond["label"]) == len(images)
    seen = Circles().batch(0, 0, 64).x0
    fresh = Circles().held_out(0, 64).x0
    assert torch.cdist(seen.flatten(1), fresh.flatten(1)).min() > 0.1
    assert torch.equal(Circles().held_out(0, 64).x0, fresh)
    assert not torch.equal(Circles().held_out(1, 64).x0, fresh)
    for dataset in (Circles(), Digits(), Points("moons")):
        assert isinstance(dataset, HeldOut)


def test_digits_have_seventeen_levels_and_circles_eight_bits():
    images = digit_halves()[0].images
    assert torch.equal(quantised(images, Digits().levels), images)
    assert images.unique().numel() == 17 == Digits().levels
    assert Circles().levels == 256
    assert Points("moons").levels is None


def test_an_idle_network_gives_the_bits_of_noise():
    """An untrained DiT leaves x where it is: its density is N(0, I), whatever the image."""
    process = FlowMatching(ditlab.DiT(image_size=8, patch_size=2, dim=16, depth=1, heads=2, num_classes=10))
    figures = measure_likelihood(process, Digits(), 20)
    images = digit_halves()[1].images
    square = float(images.square().mean() + (1 / 8) ** 2 / 12)
    expected = (0.5 * square + 0.5 * math.log(2 * math.pi) - math.log(1 / 8)) / math.log(2)
    assert figures["nll"] == pytest.approx(expected, abs=0.05)
    assert (figures["nll_n"], figures["nll_unit"]) == (20, "bits/dim")
