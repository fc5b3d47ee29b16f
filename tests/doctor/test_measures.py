"""What the doctor measures, against closed forms, other ways to compute it, and runs whose answer is known."""

import math
import statistics
import time

import numpy as np
import pytest
import torch
from torch import nn

from ditlab.config import DDPMConfig, FlowConfig, MeanFlowConfig, MLPConfig
from ditlab.data.dataset import Batch
from ditlab.data.digits import Digits
from ditlab.data.points import Points
from ditlab.doctor.checks import Check, verdict
from ditlab.doctor.evidence import Weights
from ditlab.doctor.labels import told_by_samples
from ditlab.doctor.metrics import Course, from_metrics, gates, skipped_steps, training_curve
from ditlab.doctor.trials import bounds, squared_errors, training_trials, trials
from ditlab.doctor.weights import LITTLE, expected_lag, gradient_noise
from ditlab.networks.mlp import MLPDenoiser
from ditlab.runs.build import build_process
from ditlab.training.ema import EMA
from ditlab.training.optim import learning_rate_factor
from tests.training.test_fit import tiny

PROCESSES = [
    FlowConfig(),
    FlowConfig(path="cosine"),
    MeanFlowConfig(),
    *(DDPMConfig(target=target) for target in ("eps", "x0", "v")),
]


def process_of(config, network):
    return build_process(tiny("points", process=config), network).eval()


@pytest.mark.parametrize("config", PROCESSES, ids=str)
def test_the_best_line_errs_by_what_is_left_of_the_variance(config):
    """Of Gaussian data with variance v, by v·D²/(a²·v + s²): no network can do better."""
    process = process_of(config, MLPDenoiser((2,), interval=isinstance(config, MeanFlowConfig)))
    v = torch.tensor([0.3, 2.0])
    x0 = torch.randn(2**17, 2, generator=torch.Generator().manual_seed(0)) * v.sqrt() + torch.tensor([1.0, -0.5])
    drawn = trials([Batch(x0, {})])
    found = bounds(process, drawn)
    c = process.path(drawn.t.clamp(min=process.path.first).double())
    p, q = process.target(c)
    d = c.a * q - c.s * p
    left = torch.stack([x * d**2 / (c.a**2 * x + c.s**2) for x in v]).mean(0)
    for b in range(8):
        assert found.linear[b] == pytest.approx(float(left[drawn.bins == b].mean()), rel=0.04, abs=1e-4)
        assert found.linear[b] <= found.nothing[b]


@pytest.mark.parametrize("config", [FlowConfig(), DDPMConfig(), DDPMConfig(target="x0")], ids=str)
def test_the_errors_are_the_losses_of_training(config):
    torch.manual_seed(0)
    process = process_of(config.model_copy(update={"condition_dropout": 0.0}), MLPDenoiser((2,)))
    drawn = training_trials(Points("moons"), 200)
    generator = torch.Generator().manual_seed(3)
    t = drawn.t.clamp(min=process.path.first)
    with torch.no_grad():
        losses = process.losses(drawn.x0, generator=generator, t=t)
    noise = torch.randn(drawn.x0.shape, generator=torch.Generator().manual_seed(3))
    assert squared_errors(process, drawn._replace(noise=noise)) == pytest.approx(losses, rel=1e-5)


def test_trials_of_fewer_samples_are_the_first_of_more():
    few, many = (training_trials(Digits(), n) for n in (512, 900))
    assert torch.equal(few.t, many.t[:512])
    assert torch.equal(few.noise, many.noise[:512])
    assert torch.equal(few.cond["label"], many.cond["label"][:512])
    assert torch.bincount(few.bins).tolist() == [64] * 8


class Moved(Points):
    """Points whose mean a network has to learn first: its gradient is far from 0."""

    def batch(self, seed, position, size):
        return Batch(super().batch(seed, position, size).x0 + 2, {})


def test_gradient_noise_is_that_of_the_gradients_of_single_samples():
    config = tiny("points", network=MLPConfig(hidden=8), batch_size=64, process=FlowConfig(times="uniform"))
    torch.manual_seed(0)
    process = process_of(config.process, MLPDenoiser((2,), hidden=8)).requires_grad_(False)
    weights = Weights(1, process, process, process.network, None)
    found = gradient_noise(config, Moved("moons"), weights, 1024).value["scale"]
    process.requires_grad_(True)
    x0 = Moved("moons").batch(5, 0, 500).x0
    losses = process.losses(x0, generator=torch.Generator().manual_seed(1))
    parameters = list(process.network.parameters())
    single = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in losses]
    )
    trace, squared = float(single.var(0).sum()), float(single.mean(0).square().sum())
    assert found == pytest.approx(trace / (squared - trace / len(single)), rel=0.4)


def test_gradient_noise_looks_at_no_more_samples_than_it_may():
    seen = []

    class Counted(Moved):
        def batch(self, seed, position, size):
            seen.append(size)
            return super().batch(seed, position, size)

    config = tiny("points", network=MLPConfig(hidden=8), batch_size=256)
    process = process_of(config.process, MLPDenoiser((2,), hidden=8)).requires_grad_(False)
    for n, looked in ((64, 64), (300, 288), (1024, 512)):
        gradient_noise(config, Counted("moons"), Weights(1, process, process, process.network, None), n)
        assert sum(seen) == looked
        seen.clear()


@pytest.mark.parametrize("wander", [True, False], ids=["wandering", "straight"])
@pytest.mark.parametrize("decay", [0.99, 0.999, 0.9999])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_no_average_is_farther_behind_than_expected(wander, decay, schedule):
    """Weights that move by the learning rate, straight on or at random, and our own average of them."""
    config, steps = tiny(steps=2000, warmup_steps=100, ema_decay=decay, schedule=schedule), 2000
    network = nn.Linear(500, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema, generator = EMA(network, decay), torch.Generator().manual_seed(0)
    straight = torch.ones(1, 500)
    for step in range(1, steps + 1):
        move = torch.randn(1, 500, generator=generator) if wander else straight
        network.weight.data += learning_rate_factor(step - 1, steps, 100, schedule) * move
        ema.update(step)
        if step in (100, 500, 1000, 1500, 2000):
            raw, averaged = network.weight.detach(), ema.network.weight.detach()
            lag = float((averaged - raw).norm() / raw.norm())
            assert lag <= expected_lag(config, step) + LITTLE


def metrics(losses, **more):
    return [{"step": 50 * i, "loss": loss, "seconds": 1.0, **more} for i, loss in enumerate(losses, 1)]


def course(losses):
    return Course.of(metrics(losses))


def test_a_curve_that_falls_rises_again_or_runs_away():
    config = tiny()
    falling = [1 / i for i in range(1, 21)]
    assert training_curve(config, course(falling)).mark == "ok"
    assert training_curve(config, course([*falling, 0.1, 0.1, 0.1])).mark == "warning"
    assert training_curve(config, course([*falling, 1.0, 2.0, 3.0])).mark == "bad"
    assert training_curve(config, course([1.0] * 20)).reason.startswith("the loss does not fall")
    assert training_curve(config, course([0.5 if i % 5 else 2.0 for i in range(1, 30)])).mark != "ok"
    assert training_curve(config, course([1.0, 0.5])).mark == "unknown"
    assert training_curve(tiny(process=MeanFlowConfig()), course(falling)).mark == "unknown"


def test_lines_without_a_number_are_passed_over():
    """Such as another program, or a hand, may leave."""
    lines = metrics([1 / i for i in range(1, 21)], grad_norm=0.5)
    for i, odd in enumerate([None, "much", [], math.nan, math.inf]):
        lines.insert(2 * i, {"step": 50 * i, "seconds": 1.0, "loss": odd, "grad_norm": odd, "images_per_s": odd})
    lines.append({"step": 1001, "seconds": 1.0, "gates": None, "effective_depth": None})
    found = {check.name: check for check in from_metrics(tiny(), Course.of(lines))}
    assert found["training curve"].mark == "ok"
    assert found["training curve"].value["first"] == 1
    assert found["gradient norm"].value["median"] == 0.5


def test_the_curve_of_a_long_training():
    """Means of a tenth of the lines are exact, even behind a loss that was huge; and quickly there."""
    draw = np.random.default_rng(0)
    losses = [1e30, *(draw.uniform(1, 2, 5000) / np.arange(1, 5001) ** 0.1).tolist()]
    value = training_curve(tiny(), course(losses)).value
    means = [statistics.fmean(losses[i : i + 500]) for i in range(len(losses) - 499)]
    assert (value["last"], value["least"]) == (means[-1], min(means))
    begun = time.process_time()
    training_curve(tiny(), course(losses * 14))
    assert time.process_time() - begun < 4  # 9 s and more where each mean is summed anew


def test_spikes_and_least_means_are_those_of_plain_medians_and_sums():
    draw = np.random.default_rng(0)
    for n in range(4, 60):
        losses = draw.lognormal(0, 1, n)
        losses[n // 3] = 1e30
        spikes = sum(losses[i] > 3 * statistics.median(losses[max(0, i - 5) : i]) for i in range(1, n))
        value = training_curve(tiny(), course(losses.tolist())).value
        width = max(2, n // 10)
        least = min(statistics.fmean(losses[i : i + width]) for i in range(n - width + 1))
        assert (value["spikes"], value["least"]) == (spikes, least)


def test_steps_that_were_skipped():
    config, skip = tiny(bad_steps=3), {"skipped": "loss is nan", "seconds": 1.0}
    few = [*metrics([1.0] * 20), {**skip, "step": 1001}]
    assert skipped_steps(config, Course.of(few)).mark == "ok"
    many = [*metrics([1.0] * 4), *({**skip, "step": 201 + 2 * i} for i in range(5))]
    assert skipped_steps(config, Course.of(many)).mark == "warning"
    over = [*metrics([1.0] * 20), *({**skip, "step": 1000 + i} for i in range(3))]
    assert skipped_steps(config, Course.of(over)).mark == "bad"
    assert "ended after 3 in a row" in skipped_steps(config, Course.of(over)).reason


@pytest.mark.parametrize(
    ("attn", "mlp", "step", "mark", "word"),
    [
        ([0.02, 0.08], [0.07, 0.11], 500, "ok", None),
        ([0.0, 0.0], [0.0, 0.0], 500, "bad", "closed"),
        ([0.0, 0.0], [0.0, 0.0], 0, "unknown", "open in the first"),
        ([0.001, 0.08], [0.002, 0.11], 500, "warning", "counted from 0: 0"),
        ([4.0, 0.08], [0.1, 0.11], 500, "warning", "blow up"),
        ([40.0, 0.08], [0.1, 0.11], 100, "bad", "blow up"),
    ],
)
def test_gates(attn, mlp, step, mark, word):
    line = {"step": step, "seconds": 1.0, "gates": {"attn": attn, "mlp": mlp}, "effective_depth": 2.0}
    found = gates(tiny(), Course.of([line]))
    assert found.mark == mark
    assert word is None or word in found.reason


def test_speed_that_drops():
    def speed(values):
        return next(c for c in from_metrics(tiny(), course([1.0] * len(values))) if c.name == "throughput").mark

    def told(values):
        lines = [{**line, "images_per_s": v} for line, v in zip(metrics([1.0] * 20), values, strict=True)]
        return next(c for c in from_metrics(tiny(), Course.of(lines)) if c.name == "throughput").mark

    assert speed([1]) == "unknown"
    assert told([100.0] * 20) == "ok"
    assert told([100.0] * 15 + [25.0] * 5) == "warning"


def test_labels_can_be_told_from_samples_that_have_them():
    x0, cond = Digits().batch(0, 0, 898)
    own = told_by_samples(x0, cond["label"])
    order = torch.randperm(898, generator=torch.Generator().manual_seed(0))
    other = told_by_samples(x0, cond["label"][order])
    assert own.more_than_chance
    assert own.accuracy > 0.9
    assert not other.more_than_chance
    assert told_by_samples(x0[:40], cond["label"][:40]) is None


def test_the_verdict_is_that_of_the_worst():
    ok, info = Check("training curve", "ok", ""), Check("a", "info", "")
    assert verdict([ok, info]) == "healthy"
    assert verdict([info, Check("data", "ok", "")]) == "unknown"
    assert verdict([ok, Check("a", "warning", "")]) == "warning"
    assert verdict([ok, Check("a", "warning", ""), Check("a", "bad", "")]) == "ill"
    value = Check("a", "bad", "", {"x": [math.nan, 1.0], "y": math.inf}).as_json()["value"]
    assert value == {"x": ["nan", 1.0], "y": "inf"}
