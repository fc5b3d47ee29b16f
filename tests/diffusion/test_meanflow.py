"""MeanFlow: its identity on a closed form, its target, its loss beside flow matching's, its samples."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ditlab
from ditlab.core.rng import generator_for
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.meanflow import MeanFlow
from tests.diffusion.test_process import shaken

MEAN, STD = 0.6, 0.7


def average_velocity(z, t, length):
    """u(z, r, t) for x0 ~ N(MEAN, STD²): the flow keeps the quantile of z, so

    x_r = (1 − r)·m + (S_r/S_t)·(z − (1 − t)·m) with S_t² = (1 − t)²·std² + t²; divided out, so that t = r is no limit.
    """
    t, length = (value.reshape(-1, *[1] * (z.dim() - 1)) for value in (t, length))
    r = t - length

    def spread(t):
        return ((1 - t) ** 2 * STD**2 + t**2).sqrt()

    rise = (t + r) - STD**2 * (2 - t - r)  # (S_t² − S_r²)/(t − r)
    return -MEAN + (z - (1 - t) * MEAN) * rise / (spread(t) * (spread(t) + spread(r)))


class ClosedForm(nn.Module):
    """The average velocity as a network."""

    def forward(self, x, t, cond=None):
        length = (cond or {}).get("interval", torch.zeros_like(t))
        return average_velocity(x, t, length)


def intervals(n, seed, dtype=torch.float64):
    pair = torch.rand(2, n, generator=generator_for(seed), dtype=dtype)
    return pair.amax(0), pair.amax(0) - pair.amin(0)


def test_the_closed_form_is_the_flow():
    """Many small Euler steps of the velocity lead where one jump of the average velocity does."""
    z = torch.randn(200, 3, generator=generator_for(0), dtype=torch.float64)
    t, length = intervals(200, 1)
    x, steps = z.clone(), 4000
    for i in range(steps):
        x -= (length / steps)[:, None] * average_velocity(x, t - length * (i + 0.5) / steps, torch.zeros_like(t))
    torch.testing.assert_close(x, z - length[:, None] * average_velocity(z, t, length), rtol=0, atol=1e-3)


@pytest.mark.parametrize("trailing", [(1,), (2,), (1, 4, 4)])
@pytest.mark.parametrize("tangent", ["conditional", "marginal"])
def test_the_target_of_the_closed_form_is_itself(trailing, tangent):
    """The MeanFlow identity, with the marginal velocity in the place of eps − x0."""
    process = MeanFlow(ClosedForm(), tangent=tangent)
    z = torch.randn(300, *trailing, generator=generator_for(2), dtype=torch.float64)
    t, length = intervals(300, 3)
    velocity = average_velocity(z, t, torch.zeros_like(t))
    target = process.target_over(velocity, z, t, length)
    torch.testing.assert_close(target, average_velocity(z, t, length), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tangent", ["conditional", "marginal"])
def test_the_closed_form_minimises_the_loss(tangent):
    """E[target | z, r, t] is the closed form: the error correlates with no function of (z, r, t)."""
    process = MeanFlow(ClosedForm(), tangent=tangent, flow_share=0.0)
    n = 100_000
    x0 = MEAN + STD * torch.randn(n, 1, generator=generator_for(4), dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator_for(5), dtype=torch.float64)
    t, length = intervals(n, 6)
    z = process.q_sample(x0, t, noise)
    error = (process.target_over(noise - x0, z, t, length) - average_velocity(z, t, length))[:, 0]
    assert error.std() > 0.3  # it is the mean that is right, not each
    for function in (torch.ones(n), z[:, 0], t, length, z[:, 0] * length, torch.sin(3 * z[:, 0]) * t):
        product = error * function
        assert abs(product.mean()) < 4 * product.std() / n**0.5


@pytest.mark.parametrize("make", ["mlp", "dit"])
def test_the_derivative_is_that_of_finite_differences(make):
    """du/dt along (velocity, 1, 1), through attention too."""
    network = {
        "mlp": lambda: ditlab.MLPDenoiser(interval=True),
        "dit": lambda: ditlab.DiT(image_size=8, dim=16, depth=2, heads=2, interval=True, num_classes=3),
    }[make]()
    network = shaken(network).double()
    shape = (2,) if make == "mlp" else (1, 8, 8)
    cond = None if make == "mlp" else {"label": torch.arange(6) % 3}
    z, velocity = torch.randn(2, 6, *shape, generator=generator_for(7), dtype=torch.float64)
    t, length = intervals(6, 8)
    target = MeanFlow(network).target_over(velocity, z, t, length, cond)

    def average(step):
        moved = {**(cond or {}), "interval": length + step}
        return network(z + step * velocity, t + step, moved)

    step = 1e-6
    slope = (average(step) - average(-step)) / (2 * step)
    expected = velocity - length.reshape(-1, *[1] * len(shape)) * slope
    torch.testing.assert_close(target, expected.detach(), rtol=1e-5, atol=1e-6)
    assert not target.requires_grad


@pytest.mark.parametrize("shape", [(2,), (1, 16, 16), (3, 8, 12)])
def test_without_intervals_it_is_flow_matching(shape):
    if len(shape) == 1:
        network = shaken(ditlab.MLPDenoiser(interval=True))
    else:
        network = shaken(ditlab.DiT(image_size=shape[1:], channels=shape[0], dim=16, heads=2, depth=1, interval=True))
    x, t = torch.randn(8, *shape, generator=generator_for(9)), torch.rand(8, generator=generator_for(10))
    flow = FlowMatching(network).losses(x, generator=generator_for(11), t=t)
    mean = MeanFlow(network, adaptive_power=0.0).losses(x, generator=generator_for(11), t=t)
    assert torch.equal(flow, mean)
    weighted = MeanFlow(network).losses(x, generator=generator_for(11), t=t)
    torch.testing.assert_close(weighted, flow / (flow + 1e-3))
    process = MeanFlow(network)
    samples = process.sample(3, shape, steps=3, solver="heun", seed=1)
    assert torch.equal(samples, FlowMatching(network).sample(3, shape, steps=3, solver="heun", seed=1))
    assert process.loss(x, generator=generator_for(12)).isfinite()


def test_intervals_and_their_share():
    t, length = MeanFlow(None).draw_times(4000, generator_for(13), "cpu").unbind(1)
    assert (length == 0).sum() == 3000
    assert ((length >= 0) & (length <= t) & (t <= 1)).all()
    assert (length[3000:] > 0).all()
    logit = torch.logit(torch.cat([t[3000:], (t - length)[3000:]]))  # the two draws, in some order
    assert logit.mean() == pytest.approx(-0.4, abs=0.1)
    assert logit.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_jumps_follow_the_flow_exactly(steps):
    """With the closed form any number of jumps ends at the same point: the quantile of the noise."""
    process = MeanFlow(ClosedForm())
    walk = list(process.trajectory(6, (2,), steps=steps, seed=4))
    assert [t for t, _ in walk] == pytest.approx([1 - i / steps for i in range(steps + 1)])
    torch.testing.assert_close(walk[-1][1], MEAN + STD * walk[0][1], rtol=0, atol=1e-5)
    assert torch.equal(walk[0][1], next(FlowMatching(ClosedForm()).trajectory(6, (2,), seed=4))[1])
    assert torch.equal(process.sample(6, (2,), steps=steps, seed=4), walk[-1][1])
    assert process.evaluations == 2 * 6 * steps
    assert process.stepper("average").evaluations(steps) == steps


class Guided(nn.Module):
    """A constant velocity for each label, and null."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.tensor([1.0, 3.0, 0.5]))

    def null_condition(self, cond):
        return {"label": torch.full_like(cond["label"], 2)}

    def forward(self, x, t, cond):
        return self.table[cond["label"]][:, None].expand_as(x)


def test_guidance_is_folded_into_the_target():
    """ω·v + κ·u(c) + (1 − ω − κ)·u(null), with ω = guidance·(1 − κ)."""
    process = MeanFlow(Guided(), guidance=3.0, guidance_mix=0.25)
    velocity, t = torch.full((2, 1), 2.0), torch.full((2,), 0.5)
    guided = process.guided(velocity, velocity, t, {"label": torch.tensor([0, 1])})
    omega = 3.0 * 0.75
    expected = omega * 2.0 + 0.25 * torch.tensor([1.0, 3.0]) + (1 - omega - 0.25) * 0.5
    torch.testing.assert_close(guided[:, 0].detach(), expected)
    assert torch.equal(MeanFlow(Guided()).guided(velocity, velocity, t, None), velocity)


def test_bf16_leaves_the_target_alone():
    """Under autocast the prediction may be coarse; the derivative in time is not."""
    network = shaken(ditlab.DiT(image_size=8, dim=32, depth=2, heads=2, interval=True))
    process = MeanFlow(network)
    z, velocity = torch.randn(2, 6, 1, 8, 8, generator=generator_for(14))
    t, length = intervals(6, 15, torch.float32)
    plain = process.target_over(velocity, z, t, length)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(process.target_over(velocity, z, t, length), plain)
        loss = process.loss(z, generator=generator_for(16))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def trained(steps, n):
    """A small MLP on N(MEAN, STD²) in one dimension, by MeanFlow alone; t and r spread over all of [0, 1]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ditlab.MLPDenoiser((1,), hidden=64, depth=2, interval=True, time_scale=3.0)
    process = MeanFlow(network, adaptive_power=0.0, flow_share=0.5, times_mean=-1.0, times_std=2.0, tangent="marginal")
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x0 = MEAN + STD * torch.randn(n, 1, generator=generator_for("data", step))
        optimizer.zero_grad()
        process.loss(x0, generator=generator_for("noise", step)).backward()
        optimizer.step()
        decay.step()
        average.update_parameters(network)
    return average.module


@pytest.mark.parametrize(
    ("steps", "n", "within"), [(500, 512, 0.05), pytest.param(1200, 4096, 0.01, marks=pytest.mark.slow)]
)
def test_training_finds_the_average_velocity(unchecked, steps, n, within):
    """Mean absolute error, of values of size 1, over intervals spread evenly and z as the path has it there."""
    network = trained(steps, n)
    t, length = intervals(20_000, 17, torch.float32)
    spread = ((1 - t) ** 2 * STD**2 + t**2).sqrt()
    z = ((1 - t) * MEAN + spread * torch.randn(len(t), generator=generator_for(18)))[:, None]
    truth = average_velocity(z, t, length)
    with torch.no_grad():
        error = (network(z, t, {"interval": length}) - truth).abs()
    assert truth.std() > 0.5
    assert error.mean() < within


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanFlow(None, flow_share=2), "between 0 and 1"),
        (lambda: MeanFlow(None, tangent="no"), "marginal"),
        (lambda: MeanFlow(None, guidance_mix=1), "below 1"),
        (lambda: MeanFlow(None, guidance=2), "null_condition"),
        (lambda: MeanFlow(Guided(), guidance=2, condition_dropout=0), "condition_dropout"),
        (lambda: MeanFlow(Guided(), guidance=2).loss(torch.zeros(4, 1)), "label"),
        (lambda: MeanFlow(ClosedForm()).sample(2, (1,), guidance=2.0), "process.guidance"),
        (lambda: MeanFlow(ClosedForm()).trajectory(2, (1,), guidance=2.0), "process.guidance"),
        (lambda: MeanFlow(ClosedForm()).sample(2, (1,), steps=0), "at least 1"),
        (lambda: MeanFlow(ClosedForm()).sample(0, (1,)), "at least 1"),
        (lambda: MeanFlow(ditlab.DiT(learned_variance=True)), "learned_variance=False"),
        (lambda: FlowMatching(ClosedForm()).sample(2, (1,), solver="average"), "unknown solver 'average'"),
    ],
)
def test_errors_name_the_fix(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
