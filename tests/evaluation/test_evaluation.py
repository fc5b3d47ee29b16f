import math

import pytest
import torch
from scipy import stats

from ditlab.core.rng import generator_for
from ditlab.data.circles import circles, draw_discs
from ditlab.data.digits import digit_halves
from ditlab.evaluation.metrics.by_data import measure_circles, measure_digits, measure_points
from ditlab.evaluation.metrics.discs import disc_overlap, disc_parameters
from ditlab.evaluation.metrics.distances import energy_distance, sliced_wasserstein


def cloud(n, d, seed):
    return torch.randn(n, d, generator=generator_for(seed))


def test_energy_distance_in_one_dimension_is_scipys_squared():
    x, y = cloud(300, 1, 0), cloud(500, 1, 1) * 1.5 + 0.3
    assert energy_distance(x, y) == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-6)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_of_a_shift():
    """Moving a cloud by v costs |v·axis| along each axis: on average |v|²/d, squared."""
    x, shift = cloud(4000, 2, 2), torch.tensor([3.0, 4.0])
    assert sliced_wasserstein(x, x + shift, directions=2000) == pytest.approx(5 / math.sqrt(2), rel=0.03)
    assert sliced_wasserstein(x, x) == 0
    one = sliced_wasserstein(cloud(1000, 1, 3), 2 * cloud(1000, 1, 4))
    assert one == pytest.approx(1, rel=0.1)  # quantiles of N(0, 1) and N(0, 4) differ by one standard deviation


def test_discs_are_measured_as_they_were_drawn():
    images, cx, cy, r = circles(500, generator_for(7))
    measured = disc_parameters(images)
    torch.testing.assert_close(measured[:, 0], cx, atol=0.05, rtol=0)
    torch.testing.assert_close(measured[:, 1], cy, atol=0.05, rtol=0)
    torch.testing.assert_close(measured[:, 2], r, atol=0.05, rtol=0)


def test_what_is_a_circle():
    images = circles(2000, generator_for(8)).images
    assert (disc_overlap(images) >= 0.95).all()
    square = -torch.ones(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 1
    half = images[:1].clone()
    half[..., :, : int(disc_parameters(half)[0, 0])] = -1
    blank, full = -torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    for wrong in (square, half, blank, full, torch.zeros(1, 1, 16, 16)):
        assert (disc_overlap(wrong) < 0.95).all()
    ellipse = draw_discs(*(torch.tensor([v]) for v in (8.0, 8.0, 4.0)))
    ellipse = torch.nn.functional.interpolate(ellipse, scale_factor=(1.0, 1.5), mode="bilinear")[..., 4:20]
    assert (disc_overlap(2 * ellipse - 1) < 0.95).all()


def test_real_circles_score_the_floor():
    figures = measure_circles(circles(1000, generator_for("fresh")).images)
    assert figures["valid"] == 1
    assert figures["overlap"] > 0.97
    assert figures["energy_distance"] < 3 * figures["energy_distance_floor"]
    shrunk = circles(1000, generator_for("fresh")).images[:, :, :, torch.arange(15, -1, -1)].roll(2, 3)
    assert measure_circles(shrunk)["energy_distance"] > 3 * figures["energy_distance_floor"]


def test_points_score_the_floor_and_others_do_not():
    from ditlab.data.points import moons, spirals

    good, bad = (measure_points(f(1000, generator_for("fresh")), "moons") for f in (moons, spirals))
    for key in ("energy_distance", "sliced_wasserstein"):
        assert good[key] < 2 * good[f"{key}_floor"]
        assert bad[key] > 3 * bad[f"{key}_floor"]


def test_the_judge_knows_digits_by_their_labels():
    a = digit_halves()[0]
    copies = measure_digits(a.images, a.labels)
    assert copies["accuracy"] == copies["accuracy_real"] > 0.95
    shuffled = measure_digits(a.images, (a.labels + 1) % 10)
    assert shuffled["accuracy"] < 0.05
    assert set(shuffled["accuracy_by_label"]) == {str(k) for k in range(10)}
