"""Where the steps of a trajectory lie."""

import math

import pytest
import torch

import ditlab
from ditlab.config.values import GridName
from ditlab.diffusion.grids import GRIDS, sampling_times
from ditlab.diffusion.paths import CosinePath, DiscreteVP, LinearPath, named_betas

PATHS = {
    "linear": LinearPath(),
    "cosine": CosinePath(),
    "ddpm-linear": DiscreteVP(named_betas("linear", 1000)),
    "ddpm-cosine": DiscreteVP(named_betas("cosine", 1000)),
}


def indices(times, steps=1000):
    """Published indices k, falling, without the data at the end."""
    k = times[:-1] * steps - 1
    torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-9)
    return k.round().long().tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 200])
def test_every_grid_falls_from_the_start_to_the_data(path, grid, steps):
    if grid == "leading" and not path.startswith("ddpm"):
        with pytest.raises(ValueError, match="only DDPM has"):
            sampling_times(grid, PATHS[path], 1.0, steps)
        return
    for start in (1.0, 0.999):
        times = sampling_times(grid, PATHS[path], start, steps)
        assert times.shape == (steps + 1,)
        assert times.dtype == torch.float64
        assert (times.diff() < 0).all()
        assert times[-1] == 0
        if grid != "leading":
            assert times[0] == pytest.approx(start)
        if path.startswith("ddpm") and grid != "uniform":
            assert times[-2] >= 0.001 - 1e-12  # no network was trained below the first published step


def test_the_names_are_the_commands_choices():
    assert set(GridName.__args__) == {"auto", *GRIDS}


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_karras_is_the_published_formula(path):
    times = sampling_times("karras", PATHS[path], 1.0, 18)
    c = PATHS[path](times[1:-1])
    i = torch.arange(1, 18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(c.s / c.a, expected, rtol=1e-9, atol=0)


def test_quadratic_is_denser_near_the_data():
    times = sampling_times("quadratic", PATHS["linear"], 1.0, 10)
    torch.testing.assert_close(times, (torch.arange(10, -1, -1) / 10).double() ** 2)


def test_shift_moves_times_to_the_noise():
    """By Esser et al. 2024, eq. 23: the log of s/a moves by log shift on the straight path."""
    plain, moved = (sampling_times("uniform", PATHS["linear"], 1.0, 10, shift) for shift in (1, 3))
    torch.testing.assert_close(torch.logit(moved[1:-1]), torch.logit(plain[1:-1]) + math.log(3))
    assert (moved[0], moved[-1]) == (1, 0)
    assert (
        sampling_times("karras", PATHS["cosine"], 1.0, 9, 0.5)[1] < sampling_times("karras", PATHS["cosine"], 1, 9)[1]
    )


def test_respaced_steps_are_the_published_ones():
    """Section 4 of Nichol & Dhariwal 2021; the ends are k = 0 and 999, and 250 steps are those DiT samples with."""
    path = PATHS["ddpm-linear"]
    for steps in (2, 10, 50, 250, 1000):
        exact = [i * 999 / (steps - 1) for i in range(steps)]
        k = indices(sampling_times("respaced", path, 1.0, steps))[::-1]
        assert (k[0], k[-1]) == (0, 999)
        assert max(abs(a - b) for a, b in zip(k, exact, strict=True)) <= 0.5 + 1e-9
    assert indices(sampling_times("respaced", path, 1.0, 5)) == [999, 749, 500, 250, 0]
    assert indices(sampling_times("respaced", path, 1.0, 1)) == [999]
    assert indices(sampling_times("respaced", path, 0.999, 3))[0] == 998
    # 999/20 added up ten times falls short of 499.5, which the published sampler rounds down
    assert 499 in indices(sampling_times("respaced", path, 1.0, 21))


def test_leading_steps():
    assert indices(sampling_times("leading", PATHS["ddpm-linear"], 1.0, 4)) == [750, 500, 250, 0]
    assert indices(sampling_times("leading", PATHS["ddpm-linear"], 1.0, 3)) == [666, 333, 0]


def test_processes_have_grids_of_their_own():
    ddpm, flow = ditlab.DDPM(None), ditlab.FlowMatching(None)
    assert torch.equal(ddpm.sampling_times(50), ddpm.sampling_times(50, "respaced"))
    assert torch.equal(flow.sampling_times(50), torch.linspace(1, 0, 51, dtype=torch.float64))
    assert torch.equal(flow.sampling_times(50, "respaced"), flow.sampling_times(50, "uniform"))


def test_times_may_be_given():
    process = ditlab.FlowMatching(ditlab.MLPDenoiser())
    times = torch.tensor([1.0, 0.7, 0.2, 0.0])
    given = [t for t, _ in process.trajectory(2, (2,), grid=times)]
    assert given == pytest.approx(times.tolist())
    made = [t for t, _ in process.trajectory(2, (2,), steps=3, grid=lambda path, start, steps: times[: steps + 1])]
    assert made == given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": "even"}, "uniform, quadratic, karras, respaced, leading"),
        ({"steps": 51}, "at most 50, or grid='uniform'"),
        ({"steps": 51, "grid": "leading"}, "at most 50"),
        ({"steps": 0}, "at least 1"),
        ({"shift": 2.0}, "choose grid='uniform'"),
        ({"shift": 0.0, "grid": "uniform"}, "above 0"),
        ({"grid": torch.tensor([0.5, 0.7, 0.0])}, "falling times"),
        ({"grid": torch.tensor([1.5, 0.0])}, "falling times"),
    ],
)
def test_errors_name_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        ditlab.DDPM(None, steps=50).sampling_times(**{"steps": 10, **arguments})
