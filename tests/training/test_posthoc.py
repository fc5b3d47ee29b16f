"""Power-function averages and what is made of their snapshots, against their definition: quadrature and plain sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import null_space

import ditlab
from ditlab.training.ema import PowerAverages, exponent, interval, relative_width
from ditlab.training.posthoc_ema import ROUNDING, combine, inner_products
from tests.diffusion.test_process import shaken

WIDTHS = (0.05, 0.1)


def profile(width, step):
    """How much the weights after each of the steps 1 … ``step`` count in the average after the last."""
    edges = (np.arange(step + 1) / step) ** (exponent(width) + 1)
    return np.diff(edges)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_relative_width_is_the_standard_deviation_of_the_profile(width):
    """By quadrature."""
    power = exponent(width)
    assert power > 0
    assert relative_width(power) == pytest.approx(width, rel=1e-9)
    moments = [quad(lambda u, n=n: (power + 1) * u ** (power + n), 0, 1, epsabs=1e-12)[0] for n in range(3)]
    assert moments[0] == pytest.approx(1)
    assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(width, rel=1e-5)


def test_the_update_gives_the_power_function():
    """After any number of steps: each weight counts as the integral of the profile over its step."""
    network = ditlab.MLPDenoiser()
    averages, path = PowerAverages(network, (0.05, 0.28)), []
    for step in range(1, 41):
        torch.manual_seed(step)
        path.append(shaken(network).out.bias.detach().double().clone())
        averages.update(step)
        for width in (0.05, 0.28):
            expected = torch.from_numpy(profile(width, step)) @ torch.stack(path)
            own = averages.state_dict()[f"{width}/out.bias"]
            assert own.dtype == torch.float32
            torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.28])
def test_updates_become_rare_before_they_become_too_small_for_fp32(width):
    """Each step for as long as any of the tests trains; then never below 2^-14, always K steps behind the last one."""
    power = exponent(width)
    assert interval(int(8192 * (power + 1)), power) == 1
    for n in range(14, 27):
        every = interval(2**n + 1, power)
        for step in range(2**n - 2 * every, 2**n + 3 * every, every):
            own = interval(step, power)
            assert own == 1 or 2**-14 < own * (power + 1) / step <= 2**-12
            if step % own == 0:
                assert (step - own) % interval(step - own, power) == 0
                assert all(between % interval(between, power) for between in range(step - own + 1, step))


def test_an_average_follows_the_weights_however_long_the_training_is():
    """Weights that jump by 2 % after 4 million steps and stay there: (t₀/t)^(γ+1) of that is left at step t."""
    network = torch.nn.ParameterDict({"w": torch.full((3,), 1.0)})
    averages, begun, steps = PowerAverages(network, WIDTHS), 4_000_000, 4_200_000
    with torch.no_grad():
        network["w"].fill_(1.02)
    for step in range(begun + 1, steps + 1):
        averages.update(step)
        if step == begun + 77_777:  # a run that is resumed between two updates
            resumed = PowerAverages(network, WIDTHS)
            resumed.load_state_dict({name: tensor.clone() for name, tensor in averages.state_dict().items()})
            averages = resumed
    for width in WIDTHS:
        left = 0.02 * (begun / steps) ** (exponent(width) + 1)
        assert float(averages.state_dict()[f"{width}/w"][0]) == pytest.approx(1.02 - left, abs=2e-5)


@pytest.mark.parametrize("width", [0.02, 0.08, 0.15, 0.28])
def test_what_is_made_of_a_long_training_misses_no_more(width):
    """Its snapshots are of the last update before them, and its updates of the last of K weights."""
    step, every = 7_000_000, 218_750
    steps, taken = list(range(every, step + 1, every)), np.arange(1, step, 997)
    made, delta = combine(width, step, steps, WIDTHS), -((taken / step) ** (exponent(width) + 1))
    for j, tracked in enumerate(WIDTHS):
        power = exponent(tracked) + 1
        seen = taken - taken % [interval(int(t), power - 1) for t in taken]
        ends = [own - own % interval(own, power - 1) for own in steps]
        assert ends != steps
        for end, coefficient in zip(ends, made.coefficients[:, j], strict=True):
            delta += coefficient * np.minimum(seen / end, 1) ** power
    missed = np.hypot(np.sqrt((delta**2).mean()), ROUNDING * np.linalg.norm(made.coefficients))
    assert missed == pytest.approx(made.expected_error, rel=0.02)


@given(ends=st.tuples(*[st.floats(0.001, 1)] * 2), powers=st.tuples(*[st.floats(1, 100)] * 2))
@settings(max_examples=50, deadline=None)
def test_inner_products_by_quadrature(ends, powers):
    a, b = (tuple(np.array([value]) for value in pair) for pair in zip(ends, powers, strict=True))
    expected = quad(
        lambda u: min(u / ends[0], 1) ** powers[0] * min(u / ends[1], 1) ** powers[1],
        *(0, 1),
        points=sorted({*ends, *(end * 2 ** (-1 / power) for end, power in zip(ends, powers, strict=True))}),
        limit=200,
    )[0]
    assert inner_products(a, b)[0, 0] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def residual(made, width, step, steps):
    """By how much the integrated profiles differ after each step; the path is constant over a step."""
    mixed = np.zeros(step)
    for own, coefficients in zip(steps, made.coefficients, strict=True):
        for tracked, c in zip(WIDTHS, coefficients, strict=True):
            mixed[:own] += c * profile(tracked, own)
    return np.cumsum(mixed - profile(width, step))


@pytest.mark.parametrize("width", [0.02, 0.05, 0.08, 0.15, 0.25, 0.28])
@pytest.mark.parametrize("every", [60, 125, 500])
def test_the_error_is_bounded_by_how_far_the_weights_move(width, every):
    """|combination − average| ≤ (Σ ΔP²)^½ (Σ |θ(i+1) − θ(i)|²)^½ on any path, and ΔP is what is called the error."""
    step, steps = 2000, list(range(every, 2001, every))
    made = combine(width, step, steps, WIDTHS)
    assert made.coefficients.shape == (len(steps), 2)
    assert made.coefficients.sum() == pytest.approx(1, abs=1e-9)
    delta = residual(made, width, step, steps)
    assert abs(delta[-1]) < 1e-9
    noise = ROUNDING * np.linalg.norm(made.coefficients)
    assert np.hypot(np.sqrt((delta**2).mean()), noise) == pytest.approx(made.expected_error, rel=0.05, abs=1e-6)
    draw = np.random.default_rng(0)
    t = np.arange(1, step + 1) / step
    for path in (draw.standard_normal(step).cumsum(), np.sin(5 * t), np.log(t), draw.standard_normal(step), t > 0.3):
        error = np.diff(delta, prepend=0) @ path
        assert abs(error) <= np.linalg.norm(delta) * np.linalg.norm(np.diff(path)) + 1e-9
        shifted = np.diff(delta, prepend=0) @ (path + 1000.0)  # where the weights are does not matter
        assert shifted == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.2])
def test_no_other_combination_of_the_same_sum_is_nearer(width):
    """Against least squares on a fine grid, without the closed forms."""
    steps, step = [30, 55, 80, 100], 100
    grid = (np.arange(200_000) + 0.5) / 200_000

    def integrated(power, end):
        return np.minimum(grid / end, 1) ** power

    columns = [integrated(exponent(w) + 1, own / step) for own in steps for w in WIDTHS]
    design = np.stack(columns, 1) / np.sqrt(len(grid))
    wanted = integrated(exponent(width) + 1, 1) / np.sqrt(len(grid))
    design = np.concatenate([design, ROUNDING * np.eye(len(columns))])
    wanted = np.concatenate([wanted, np.zeros(len(columns))])
    free = null_space(np.ones((1, len(columns))))
    even = np.full(len(columns), 1 / len(columns))
    expected = even + free @ np.linalg.lstsq(design @ free, wanted - design @ even)[0]
    made = combine(width, step, steps, WIDTHS)
    np.testing.assert_allclose(made.coefficients.ravel(), expected, atol=1e-3 * np.abs(expected).max())
    assert made.expected_error == pytest.approx(np.linalg.norm(design @ expected - wanted), rel=1e-3)


@pytest.mark.parametrize("count", [1, 7, 32, 400])
def test_a_tracked_width_comes_back(count):
    """Whatever else could be mixed in, to the rounding of one snapshot."""
    steps = [10 * (i + 1) for i in range(count)]
    for i, width in enumerate(WIDTHS):
        made = combine(width, steps[-1], steps, WIDTHS)
        assert made.expected_error <= ROUNDING * 1.001
        if count <= 7:
            assert made.coefficients[-1, i] == pytest.approx(1, abs=1e-2)


def test_more_snapshots_are_never_worse():
    steps = list(range(25, 801, 25))
    for width in (0.02, 0.15, 0.28):
        errors = [combine(width, 800, steps[::-n][::-1], WIDTHS).expected_error for n in (16, 8, 4, 2, 1)]
        assert errors == sorted(errors, reverse=True)
