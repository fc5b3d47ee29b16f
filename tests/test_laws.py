"""Properties that every path, target, solver and process must have."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ditlab.core.registry import SOLVERS
from ditlab.core.rng import generator_for
from ditlab.diffusion.ddpm import DDPM
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.paths import CosinePath, DiscreteVP, LinearPath, named_betas
from ditlab.diffusion.solvers import (
    DIFFUSION,
    DormandPrince,
    DPMSolverPlusPlus,
    DPMSolverPlusPlus3M,
    Euler,
    EulerMaruyama,
    Heun,
    integrate,
)
from ditlab.diffusion.targets import TARGETS, compose, find_target, resolve
from tests.mixture import RING, Mixture

PATHS = {
    "linear": LinearPath(),
    "cosine": CosinePath(),
    "ddpm-linear": DiscreteVP(named_betas("linear", 1000)),
    "ddpm-cosine": DiscreteVP(named_betas("cosine", 1000)),
}
TOGETHER = [(p, t) for p, t in itertools.product(PATHS, TARGETS) if t != "velocity" or PATHS[p].finite_velocity]
INNER = torch.linspace(1e-3, 1 - 1e-3, 999, dtype=torch.float64)


@pytest.mark.parametrize(("path", "target"), TOGETHER)
def test_target_round_trip(path, target):
    """(x0, eps) → y → (x0, eps) in float64."""
    c, target = PATHS[path](INNER), find_target(target, PATHS[path])
    x0, eps = torch.randn(2, len(INNER), 3, dtype=torch.float64, generator=generator_for(0))
    x_t = c.a[:, None] * x0 + c.s[:, None] * eps
    back = resolve(target, c, x_t, compose(target, c, x0, eps))
    # the rounding of x_t is magnified by 1/|D|, which is at most 1e4 on this interval
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.eps, eps, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_path_boundaries(path):
    c = PATHS[path](torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (c.a[0], c.s[0]) == (1, 0)
    assert c.s[1] > 0.999
    assert c.a[1] < 0.01
    if path != "linear":
        torch.testing.assert_close(c.a**2 + c.s**2, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS)
def test_path_derivatives_by_finite_differences(path):
    step = 1e-6
    between_nodes = (torch.arange(5, 995, dtype=torch.float64) + 0.5) / 1000
    t = between_nodes if path.startswith("ddpm") else INNER
    before, here, after = PATHS[path](t - step), PATHS[path](t), PATHS[path](t + step)
    torch.testing.assert_close(here.da, (after.a - before.a) / (2 * step), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(here.ds, (after.s - before.s) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("path", PATHS)
def test_path_clock_moves_x_as_the_velocity_does(path):
    """d(x/scale)/dclock = p·x0 + q·eps, checked against a finite difference of x_t itself."""
    t, step = torch.tensor(0.4005, dtype=torch.float64), 1e-6
    x0, eps = torch.tensor([0.7, -1.2], dtype=torch.float64)
    here, before, after = (PATHS[path].slope(t + d) for d in (0, -step, step))
    cs = [PATHS[path](t + d) for d in (-step, step)]
    u = [(c.a * x0 + c.s * eps) / slope.scale for c, slope in zip(cs, (before, after), strict=True)]
    measured = (u[1] - u[0]) / (after.clock - before.clock)
    torch.testing.assert_close(measured, here.p * x0 + here.q * eps, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_path_time_at_inverts_the_angle(path):
    t = torch.cat([torch.tensor([0.0, 1e-6, 1e-4]), INNER, torch.tensor([1.0])]).double()
    c = PATHS[path](t)
    torch.testing.assert_close(PATHS[path].time_at(torch.atan2(c.s, c.a)), t, rtol=1e-9, atol=1e-11)
    ends = PATHS[path].time_at(torch.tensor([0.0, math.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


def true_flow(path, x, start, end):
    """The probability-flow ODE by an adaptive eighth-order method: x over √(a² + s²) turns by the angle atan2(s, a)."""

    def turn(angle, flat):
        x0, eps = RING.posterior(torch.from_numpy(flat.reshape(-1, 2)), math.cos(angle), math.sin(angle))
        return (math.cos(angle) * eps - math.sin(angle) * x0).numpy().ravel()

    c = path(torch.tensor([start, end], dtype=torch.float64))
    size, angle = torch.hypot(c.a, c.s), torch.atan2(c.s, c.a).tolist()
    solution = solve_ivp(turn, angle, (x / size[0]).numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11)
    return size[1] * torch.from_numpy(solution.y[:, -1].reshape(-1, 2))


def no_noise():
    raise AssertionError("a deterministic solver draws no noise")


def solve(solver, path, x, start, end, steps):
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    *_, (_, x) = integrate(solver, lambda x, t: RING.estimate(path, x, t), path, x, grid, noise=no_noise)
    return x


DETERMINISTIC = [Euler(), Heun(), DPMSolverPlusPlus(), DPMSolverPlusPlus3M()]


def test_every_solver_by_name_has_its_order_measured():
    measured = {type(solver) for solver in DETERMINISTIC} | {EulerMaruyama, DormandPrince}
    assert {type(make()) for make in SOLVERS.values()} == measured


def measured_order(solver, path, x, start, counts):
    """The power of the step with which the error at t = 0.05 falls, against ``true_flow``."""
    truth = true_flow(path, x, start, 0.05)
    errors = [(solve(solver, path, x, start, 0.05, n) - truth).square().mean().sqrt() for n in counts]
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: type(s).__name__)
def test_solver_order(path, solver):
    """From t = 0.95, where log(a/s) is finite: the declared order, and third for a third-order multistep method."""
    x = 1.1 * torch.randn(200, 2, dtype=torch.float64, generator=generator_for(1))
    order = 3 if isinstance(solver, DPMSolverPlusPlus3M) else solver.order
    assert measured_order(solver, PATHS[path], x, 0.95, [40, 80, 160, 320]) == pytest.approx(order, abs=0.2)


STARTS = {
    "linear": FlowMatching(None),
    "cosine": FlowMatching(None, path="cosine"),
    "ddpm-linear": DDPM(None),
    "ddpm-cosine": DDPM(None, schedule="cosine"),
}


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: type(s).__name__)
def test_solver_order_from_where_sampling_starts(name, solver):
    """The declared order from pure noise; where log(a/s) is finite even there, as on DDPM's paths, at least that."""
    process = STARTS[name]
    x = torch.randn(20, 2, dtype=torch.float64, generator=generator_for(1))
    counts = [80, 160, 320] if name.startswith("ddpm") else [160, 320, 640]
    order = measured_order(solver, process.path, x, process.start, counts)
    assert order > solver.order - 0.25
    assert order < solver.order + 0.25 or name.startswith("ddpm")


FULL_SPAN = torch.randn(200, 2, dtype=torch.float64, generator=generator_for(2))


@cache
def truth_over_the_full_span(path):
    return solve(Heun(), PATHS[path], FULL_SPAN, 1.0, 0.0, 2000)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: type(s).__name__)
def test_solver_over_the_full_span(path, solver):
    """From pure noise to data: finite, and more steps are always better."""
    truth = truth_over_the_full_span(path)
    errors = [
        float((solve(solver, PATHS[path], FULL_SPAN, 1.0, 0.0, n) - truth).square().mean().sqrt())
        for n in (10, 20, 40, 80, 160)
    ]
    assert all(math.isfinite(e) for e in errors)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("path", PATHS)
def test_adaptive_error_falls_with_the_tolerance(path):
    """In proportion to it, down to t = 0.05; over the full span finite and near; evaluations grow."""
    x = FULL_SPAN[:50]
    spent = []

    def counted(tolerance, start, end):
        def denoise(x, t):
            spent[-1] += 1
            return RING.estimate(PATHS[path], x, t)

        spent.append(0)
        grid = torch.tensor([start, (start + end) / 2, end], dtype=torch.float64)
        *_, (_, x0) = integrate(DormandPrince(tolerance, tolerance), denoise, PATHS[path], x, grid, no_noise)
        return x0

    truth = counted(1e-10, 1.0, 0.05)
    tolerances = [1e-4, 1e-5, 1e-6, 1e-7]
    errors = [float((counted(tolerance, 1.0, 0.05) - truth).abs().max()) for tolerance in tolerances]
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.35)
    assert spent[1:] == sorted(spent[1:])
    near = counted(1e-6, 1.0, 0.0) - truth_over_the_full_span(path)[:50]
    assert near.abs().max() < 1e-3


def test_adaptive_steps_heed_the_worst_sample():
    """One hard sample among many easy ones is solved as well as alone."""
    path = PATHS["linear"]
    hard = Mixture([[-1.0], [1.0]], 0.02)

    def denoise(x, t):
        estimate = hard.estimate(path, x, t)
        easy = torch.arange(len(x))[:, None] > 0
        return estimate._replace(x0=estimate.x0.where(~easy, 0 * x), eps=estimate.eps.where(~easy, x / t.clamp(1e-9)))

    grid = torch.tensor([1.0, 0.05], dtype=torch.float64)
    x = torch.full((1000, 1), 0.01, dtype=torch.float64)
    ends = []
    for batch, tolerance in ((x[:1], 1e-10), (x[:1], 1e-4), (x, 1e-4)):
        *_, (_, y) = integrate(DormandPrince(tolerance, tolerance), denoise, path, batch, grid, no_noise)
        ends.append(float(y[0, 0]))
    truth, alone, together = ends
    assert abs(together - truth) < 3 * abs(alone - truth) + 1e-6


@pytest.mark.parametrize("form", DIFFUSION)
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_weak_order(path, form):
    """On a Gaussian a step is affine, x → A·x + B + C·z: mean and variance go through it exactly and err as 1/steps."""
    path, solver, one = PATHS[path], EulerMaruyama(form), Mixture([[0.8]], 0.4)

    def moments(t):
        c = path(t)
        return 0.8 * c.a, 0.16 * c.a**2 + c.s**2

    def error(steps):
        grid = torch.linspace(1.0, 0.05, steps + 1, dtype=torch.float64)
        mean, variance = moments(grid[0])
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        for t, r in itertools.pairwise(grid):

            def step(z, t=t, r=r):
                return solver.step(
                    lambda x, t: one.estimate(path, x, t), path, x, t, r, None, lambda: torch.full_like(x, z)
                )[0]

            (b, ab), c = step(0.0).flatten(), float((step(1.0) - step(0.0))[0, 0])
            mean, variance = (ab - b) * mean + b, (ab - b) ** 2 * variance + c**2
        true_mean, true_variance = moments(grid[-1])
        return math.hypot(mean - true_mean, variance - true_variance)

    counts = [40, 80, 160, 320]
    slope = np.polyfit(np.log(counts), np.log([error(n) for n in counts]), 1)[0]
    assert -slope == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize("form", DIFFUSION)
@pytest.mark.parametrize("path", PATHS)
def test_noisy_solvers_keep_the_marginals_over_the_full_span(path, form):
    """Finite at both ends, and the samples have the data's second moment."""
    generator = generator_for("noise", form)

    def noise():
        return torch.randn(4000, 2, dtype=torch.float64, generator=generator)

    path, x, solver = PATHS[path], noise(), EulerMaruyama(form, last_step="tweedie")
    grid = torch.linspace(1, 0, 101, dtype=torch.float64)
    *_, (_, x) = integrate(solver, lambda x, t: RING.estimate(path, x, t), path, x, grid, noise)
    assert x.isfinite().all()
    assert x.square().mean() == pytest.approx(1.5**2 / 2 + 0.4**2, rel=0.12)


def best_network(process):
    """The closed-form optimum for the mixture, as a network of the process."""

    def network(x, t, cond=None):
        return compose(process.target, process.path(t), *RING.estimate(process.path, x, t)[:2])

    return network


PROCESSES = {
    "flow-linear": lambda: FlowMatching(None),
    "flow-cosine": lambda: FlowMatching(None, path="cosine", times="logit-normal"),
    "ddpm-eps": lambda: DDPM(None),
    "ddpm-x0": lambda: DDPM(None, target="x0"),
    "ddpm-v": lambda: DDPM(None, target="v", schedule="cosine"),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_closed_form_minimises_the_loss(name):
    """The gradient of the loss at the closed form is zero in every direction tried, and any of them leads up."""
    process = PROCESSES[name]()
    best = best_network(process)
    x0 = RING.draw(20_000, generator_for(3))
    directions = {
        "offset": lambda x, t, y: torch.ones_like(y),
        "scale": lambda x, t, y: y,
        "x": lambda x, t, y: x,
        "time": lambda x, t, y: t[:, None] * torch.sin(3 * x),
    }
    for label, direction in directions.items():

        def losses(amount, direction=direction):
            def network(x, t, cond=None):
                y = best(x, t)
                return y + amount * direction(x, t, y)

            process.network = network
            return process.losses(x0, generator=generator_for(4))

        up, middle, down = losses(0.1), losses(0.0), losses(-0.1)
        slope = (up - down) / 0.2
        error = slope.std() / len(x0) ** 0.5
        assert abs(slope.mean()) < 4 * error, label
        assert up.mean() > middle.mean() < down.mean(), label


def test_processes_on_one_path_share_the_minimum():
    """eps, x0 and v networks that are optimal give the same estimate: the target is a matter of form."""
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator_for(5))
    estimates = []
    for target in ("eps", "x0", "v"):
        process = DDPM(None, target=target)
        process.network = best_network(process)
        estimates.append(process.denoiser()(x, torch.tensor(0.3, dtype=torch.float64)))
    for other in estimates[1:]:
        torch.testing.assert_close(other.x0, estimates[0].x0)
        torch.testing.assert_close(other.eps, estimates[0].eps)


def test_loss_equals_the_analytic_minimum():
    """For x0 ~ N(0, σ²) the best eps prediction leaves Var(eps | x_t) = a²σ² / (a²σ² + s²)."""
    one = Mixture([[0.0]], 0.5)
    process = DDPM(None)
    process.network = lambda x, t, cond=None: one.estimate(process.path, x, t).eps
    losses = process.losses(one.draw(200_000, generator_for(6)), generator=generator_for(7))
    c = process.path((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    expected = (c.a**2 * 0.25 / (c.a**2 * 0.25 + c.s**2)).mean()
    assert abs(losses.mean() - expected) < 4 * losses.std() / len(losses) ** 0.5
