"""One process code for data of any shape; conditions, guidance, noise and modes."""

import copy
import re
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ditlab
from ditlab.config import SamplingConfig
from ditlab.core.errors import ConfigError
from ditlab.core.registry import SOLVERS
from ditlab.core.rng import generator_for
from ditlab.diffusion.solvers import Heun, integrate

SHAPES = {"points": (2,), "grey": (1, 16, 16), "rectangle": (3, 8, 12)}
PROCESSES = {"flow": ditlab.FlowMatching, "ddpm": ditlab.DDPM}


def network_for(shape, **options):
    if len(shape) == 1:
        return ditlab.MLPDenoiser(**options)
    return ditlab.DiT(image_size=shape[1:], channels=shape[0], dim=16, depth=2, heads=2, **options)


def shaken(network):
    """Weights as after some training: nothing is zero any more."""
    generator = generator_for("shake")
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return network


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_same_code_for_every_shape(process, shape):
    """Loss, gradient, a step downhill, and samples, on (B, 2), (B, 1, 16, 16) and (B, 3, 8, 12)."""
    process = PROCESSES[process](network_for(shape))
    x = torch.randn(64, *shape, generator=generator_for(0))
    optimizer = torch.optim.Adam(process.parameters(), lr=3e-3)
    before = process.loss(x, generator=generator_for(1))
    assert before.shape == ()
    for _ in range(20):
        optimizer.zero_grad()
        process.loss(x, generator=generator_for(1)).backward()
        optimizer.step()
    assert process.loss(x, generator=generator_for(1)) < before
    samples = process.sample(3, shape, steps=4)
    assert samples.shape == (3, *shape)
    assert samples.isfinite().all()


@pytest.mark.parametrize("trailing", [(), (5,), (1, 4, 4), (2, 3, 4, 5)])
def test_q_sample_broadcasts(trailing):
    ddpm = ditlab.DDPM(None)
    x0, noise = torch.randn(2, 6, *trailing, generator=generator_for(2))
    k = torch.tensor([0, 1, 10, 100, 500, 999])
    mixed = ddpm.q_sample(x0, k, noise)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[k]
    for i in range(6):
        expected = alpha_bar[i].sqrt() * x0[i] + (1 - alpha_bar[i]).sqrt() * noise[i]
        torch.testing.assert_close(mixed[i], expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ddpm.q_sample(x0, (k + 1) / 1000, noise), mixed, rtol=1e-4, atol=1e-5)


def test_flow_matching_has_no_published_index():
    with pytest.raises(ValueError, match="float in \\[0, 1\\]"):
        ditlab.FlowMatching(None).q_sample(torch.zeros(1, 2), torch.tensor([3]), torch.zeros(1, 2))


def test_whole_times_are_published_indices_everywhere():
    ddpm = ditlab.DDPM(shaken(ditlab.MLPDenoiser()))
    x, k = torch.randn(4, 2, generator=generator_for(0)), torch.tensor([0, 10, 500, 999])
    by_index, by_time = (ddpm.losses(x, generator=generator_for(1), t=t) for t in (k, (k + 1) / 1000))
    assert torch.equal(by_index, by_time)
    assert torch.equal(ddpm.denoiser()(x, k).x0, ddpm.denoiser()(x, (k + 1) / 1000).x0)
    for wrong in (-1, 1000):
        with pytest.raises(ValueError, match="0 to 999"):
            ddpm.q_sample(x, torch.full((4,), wrong), x)


def test_ddpm_takes_a_network_with_learned_variance():
    network = shaken(
        ditlab.DiT(image_size=8, patch_size=4, channels=2, dim=16, heads=2, depth=1, learned_variance=True)
    )
    ddpm = ditlab.DDPM(network)
    x = torch.randn(3, 2, 8, 8, generator=generator_for(2))
    assert network(x, torch.rand(3)).shape == (3, 4, 8, 8)
    assert ddpm.loss(x, None, generator_for(3)).isfinite()
    assert ddpm.sample(2, (2, 8, 8), steps=3, solver="ancestral").shape == (2, 2, 8, 8)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dopri5"])  # its steps heed the whole batch
def test_a_sample_does_not_depend_on_its_batch(solver):
    process = ditlab.FlowMatching(shaken(network_for((1, 16, 16))))
    together = process.sample(5, (1, 16, 16), steps=6, solver=solver, seed=3)
    alone = torch.cat([process.sample(1, (1, 16, 16), steps=6, solver=solver, seed=3, first=i) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)
    start = [next(process.trajectory(n, (1, 16, 16), seed=3))[1] for n in (5, 2)]
    assert torch.equal(start[0][:2], start[1])
    other = process.sample(5, (1, 16, 16), steps=6, solver=solver, seed=4)
    assert (other - together).abs().max() > 0.1


def test_the_solvers_names_are_the_commands_choices():
    assert set(SOLVERS.parts) >= set(SOLVERS.own)


def test_a_solver_of_ones_own_is_known_by_its_name(monkeypatch):
    monkeypatch.setitem(SOLVERS.parts, "halved", Heun)  # so that it is forgotten after the test
    monkeypatch.delitem(SOLVERS.parts, "halved")
    with pytest.raises(ConfigError, match=r"unknown solver 'halved'; choose one of .*, or register it first"):
        SamplingConfig(solver="halved")

    @ditlab.register_solver("halved")
    class Halved(Heun):
        pass

    assert SamplingConfig(solver="halved").solver == "halved"
    process = ditlab.FlowMatching(shaken(network_for((2,))))
    drawn = [process.sample(3, (2,), steps=3, solver=solver) for solver in ("halved", Halved(), "heun")]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    with pytest.raises(ValueError, match="ditlab's own"):
        ditlab.register_solver("heun")


@pytest.mark.parametrize("make", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 4])
def test_evaluations_are_as_foretold(make, solver, steps):
    network = shaken(ditlab.MLPDenoiser())
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    process = make(network)
    assert process.sample(5, (2,), steps=steps, solver=solver).isfinite().all()
    foretold = SOLVERS[solver]().evaluations(steps)
    assert process.evaluations == 5 * len(calls)
    assert len(calls) == foretold if foretold is not None else len(calls) > steps


def test_an_adaptive_trajectory_may_go_in_pieces():
    """Also below the first published step, where it only rebuilds."""
    process = ditlab.DDPM(shaken(ditlab.MLPDenoiser()).double(), steps=100)
    whole = torch.tensor([0.5, 0.2, 0.01, 0.005, 0.0], dtype=torch.float64)
    solver, x = ditlab.DormandPrince(), torch.randn(3, 2, dtype=torch.float64, generator=generator_for(0))
    with torch.no_grad():
        states = [x, *(y for _, y in integrate(solver, process.denoiser(), process.path, x, whole, torch.empty))]
        for t, r in pairwise(whole):
            y, _ = solver.step(process.denoiser(), process.path, x, t, r, None, torch.empty)
            assert y.isfinite().all()
        last = process.denoiser()(states[2], whole[2])
        torch.testing.assert_close(states[4], last.x0)
        alone = solver.step(process.denoiser(), process.path, states[2], whole[2], whole[4], None, torch.empty)[0]
        torch.testing.assert_close(alone, last.x0)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr("ditlab.diffusion.solvers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install 'ditlab[ode]'")):
        ditlab.FlowMatching(ditlab.MLPDenoiser()).sample(1, (2,), solver="dopri5")


def test_trajectory_runs_from_noise_to_the_sample():
    process = ditlab.FlowMatching(shaken(ditlab.MLPDenoiser()))
    states = list(process.trajectory(3, (2,), steps=7))
    assert [t for t, _ in states] == pytest.approx([i / 7 for i in range(7, -1, -1)])
    assert torch.equal(states[-1][1], process.sample(3, (2,), steps=7))


def test_sampling_starts_where_the_target_can_tell():
    assert ditlab.FlowMatching(None).start == 1
    assert ditlab.DDPM(None).start == 1
    assert ditlab.DDPM(None, schedule="cosine").start == pytest.approx(0.999)
    assert ditlab.DDPM(None, schedule="cosine", target="v").start == 1


@pytest.mark.parametrize("training", [True, False])
def test_sampling_restores_the_mode_and_needs_no_gradient(training):
    network = network_for((1, 16, 16))
    network.blocks[0].eval()
    process = ditlab.FlowMatching(network).train(training)
    network.blocks[1].train(not training)
    modes = [m.training for m in network.modules()]
    seen = []
    network.blocks[0].register_forward_hook(lambda m, *_: seen.append((m.training, torch.is_grad_enabled())))
    samples = process.sample(2, (1, 16, 16), steps=2)
    assert seen
    assert set(seen) == {(False, False)}
    assert [m.training for m in network.modules()] == modes
    assert not samples.requires_grad
    assert torch.is_grad_enabled()


def labelled():
    return shaken(ditlab.DiT(dim=16, depth=1, heads=2, num_classes=3))


def test_no_condition_means_the_null_label():
    network, x, t = labelled(), torch.randn(4, 1, 16, 16), torch.rand(4)
    null = torch.full((4,), 3)
    torch.testing.assert_close(network(x, t), network(x, t, {"label": null}))
    assert not torch.allclose(network(x, t), network(x, t, {"label": torch.zeros(4, dtype=torch.int64)}))


def test_conditions_are_dropped_sample_by_sample():
    seen = []

    class Spy(torch.nn.Module):
        def null_condition(self, cond):
            return {"label": torch.full_like(cond["label"], 9)}

        def forward(self, x, t, cond):
            seen.append(cond["label"])
            return x

    for dropout, expected in ((0.0, 0.0), (0.3, 0.3), (1.0, 1.0)):
        process = ditlab.FlowMatching(Spy(), condition_dropout=dropout)
        process.loss(
            torch.zeros(10_000, 2), {"label": torch.ones(10_000, dtype=torch.int64)}, generator=generator_for(0)
        )
        assert (seen[-1] == 9).float().mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("process", PROCESSES)
def test_guidance_is_a_lerp_of_the_predictions(process):
    """In any target: the guided estimate is that of the interpolated prediction."""
    network = labelled()
    make = PROCESSES[process]
    x, t = torch.randn(4, 1, 16, 16, generator=generator_for(1)), torch.full((4,), 0.6)
    cond = {"label": torch.tensor([0, 1, 2, 0])}
    guided = make(network).denoiser(cond, 2.5)(x, t)
    with torch.no_grad():
        prediction = torch.lerp(network(x, t), network(x, t, cond), 2.5)
    expected = make(lambda x, t, cond: prediction).denoiser()(x, t)
    torch.testing.assert_close(guided.x0, expected.x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.eps, expected.eps, rtol=1e-4, atol=1e-4)


def test_guidance_of_one_or_none_is_off():
    process, cond = ditlab.FlowMatching(labelled()), {"label": torch.tensor([0, 1])}
    plain = process.sample(2, (1, 16, 16), cond=cond, steps=2)
    assert torch.equal(plain, process.sample(2, (1, 16, 16), cond=cond, steps=2, guidance=1))
    assert torch.equal(plain, process.sample(2, (1, 16, 16), cond=cond, steps=2, guidance=1.0))
    torch.testing.assert_close(
        process.sample(2, (1, 16, 16), steps=2), process.sample(2, (1, 16, 16), cond=cond, steps=2, guidance=0.0)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ditlab.FlowMatching(None, path="round"), "linear, cosine"),
        (lambda: ditlab.FlowMatching(None, times="never"), "logit-normal"),
        (lambda: ditlab.DDPM(None, target="velocity"), "infinite at t = 0"),
        (lambda: ditlab.DDPM(None, steps=5), "at least 21"),
        (lambda: ditlab.DDPM(None, schedule="square"), "cosine"),
        (lambda: ditlab.FlowMatching(labelled()).sample(1, (1, 16, 16), guidance=2.0), "needs a condition"),
        (lambda: ditlab.FlowMatching(labelled()).sample(1, (1, 16, 16), solver="eule"), "dpm-solver"),
        (lambda: ditlab.FlowMatching(labelled()).sample(0, (1, 16, 16)), "at least 1"),
        (lambda: ditlab.FlowMatching(labelled()).sample(1, (1, 16, 16), steps=0), "at least 1"),
        (lambda: ditlab.ClassifierFree(float("nan")), "finite"),
        (lambda: ditlab.EulerMaruyama("round"), "increasing-decreasing"),
        (lambda: ditlab.EulerMaruyama(last_step="noise"), "tweedie"),
        (lambda: ditlab.EulerMaruyama(norm=-1.0), "at least 0"),
        (lambda: ditlab.DormandPrince(rtol=0.0), "above 0"),
        (lambda: ditlab.FlowMatching(ditlab.DiT(learned_variance=True)), "learned_variance=False"),
    ],
)
def test_errors_name_the_fix(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_path_remembers_nothing_of_how_it_was_used():
    """Not the tensors without numbers of a fake mode, nor those of ``torch.func``, which cannot be copied."""
    process = ditlab.DDPM(ditlab.MLPDenoiser())
    x = torch.randn(4, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        process.path(torch.full((4,), 0.5))
    torch.func.grad(lambda t: process.path(t).a.sum())(torch.full((4,), 0.5))
    copy.deepcopy(process)
    assert process.loss(x).item() > 0
