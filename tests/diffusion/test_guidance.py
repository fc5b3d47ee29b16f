"""Guidance: what is combined, when, and how often the networks run for it."""

import pytest
import torch

import ditlab
from ditlab import ClassifierFree, Interval, Rescaled
from ditlab.core.rng import generator_for

PROCESSES = {"flow": ditlab.FlowMatching, "ddpm-eps": ditlab.DDPM, "ddpm-v": lambda net: ditlab.DDPM(net, target="v")}


class Recorder(torch.nn.Module):
    """A smooth prediction that depends on all conditions; it remembers how many rows it was asked for."""

    def __init__(self, seed=0, gain=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn((), generator=generator_for(seed), dtype=torch.float64))
        self.gain, self.rows, self.modes = gain, [], []

    def null_condition(self, cond):
        return {n: v if n == "interval" else torch.zeros_like(v) for n, v in cond.items()}

    def forward(self, x, t, cond=None):
        self.rows.append(len(x))
        self.modes.append(self.training)
        total = sum(v.double().flatten(1).sum(1) if v.dim() > 1 else v.double() for v in (cond or {}).values())
        shift = torch.as_tensor(total + t, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return self.gain * torch.tanh(self.weight * x + shift * torch.arange(1.0, x.shape[1] + 1).reshape(1, -1, 1, 1))


X = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=generator_for("x"))
COND = {"label": torch.tensor([1, 2, 0])}
T = torch.tensor(0.6, dtype=torch.float64)


def both(process):
    return process.denoiser(COND)(X, T), process.denoiser(process.network.null_condition(COND))(X, T)


def on_the_path(process, estimate):
    c = process.path(T)
    torch.testing.assert_close(c.a * estimate.x0 + c.s * estimate.eps, X, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_classifier_free_on_the_first_channels(process):
    process = PROCESSES[process](Recorder())
    strong, weak = both(process)
    for guidance, channels in ((ClassifierFree(3.0), 4), (ClassifierFree(3.0, channels=3), 3)):
        guided = process.denoiser(COND, guidance)(X, T)
        for got, s, w in zip(guided[:2], strong[:2], weak[:2], strict=True):
            torch.testing.assert_close(got[:, :channels], (w + 3 * (s - w))[:, :channels])
            torch.testing.assert_close(got[:, channels:], s[:, channels:])
        on_the_path(process, guided)
    assert process.network.rows[-2:] == [6, 6]


def test_outside_its_interval_only_the_strong_pass_runs():
    process = ditlab.FlowMatching(Recorder())
    guidance = Interval(2.0, 0.25, 0.75)
    states = dict(process.trajectory(3, (4, 2, 2), COND, steps=8, solver="euler", guidance=guidance))
    assert process.network.rows == [3 if t < 0.25 or t > 0.75 else 6 for t in list(states)[:-1]]
    assert process.evaluations == 3 * 8
    inside = process.denoiser(COND, guidance)(X, T)
    torch.testing.assert_close(inside.x0, process.denoiser(COND, 2.0)(X, T).x0)
    many = process.denoiser(COND, guidance)(X, torch.tensor([0.1, 0.6, 0.9]).double())
    torch.testing.assert_close(many.eps[1], inside.eps[1])
    torch.testing.assert_close(many.x0[0], process.denoiser(COND)(X, torch.tensor(0.1).double()).x0[0])
    for outside in (0.2, 0.8):
        t = torch.tensor(outside, dtype=torch.float64)
        assert torch.equal(process.denoiser(COND, guidance)(X, t).x0, process.denoiser(COND)(X, t).x0)


@pytest.mark.parametrize("process", PROCESSES)
def test_rescaling_gives_the_strong_spread_back_and_stays_on_the_path(process):
    process = PROCESSES[process](Recorder())
    strong, _ = both(process)
    plain = process.denoiser(COND, 4.0)(X, T)
    spreads = []
    for factor in (0.0, 0.7, 1.0):
        guided = process.denoiser(COND, Rescaled(4.0, factor))(X, T)
        on_the_path(process, guided)
        spreads.append(guided.x0.flatten(1).std(1))
    torch.testing.assert_close(spreads[0], plain.x0.flatten(1).std(1))
    torch.testing.assert_close(spreads[2], strong.x0.flatten(1).std(1))
    torch.testing.assert_close(spreads[1], 0.7 * spreads[2] + 0.3 * spreads[0])
    assert torch.equal(process.denoiser(COND, Rescaled(4.0, 0.0))(X, T).eps, plain.eps)


def test_published_indices_are_times_for_guidance_too():
    process, guidance = ditlab.DDPM(Recorder()), Interval(Rescaled(4.0, 0.5), 0.2, 0.8)
    by_index = process.denoiser(COND, guidance)(X, torch.tensor([10, 500, 990]))
    by_time = process.denoiser(COND, guidance)(X, torch.tensor([0.011, 0.501, 0.991], dtype=torch.float64))
    torch.testing.assert_close(by_index.x0, by_time.x0, rtol=1e-4, atol=1e-4)  # the index becomes a float32


def test_wrappers_compose():
    process = ditlab.FlowMatching(Recorder())
    nested = Interval(Rescaled(ClassifierFree(4.0, channels=3), 0.7), 0.2, 0.8)
    expected = process.denoiser(COND, Rescaled(ClassifierFree(4.0, channels=3), 0.7))(X, T)
    process.network.rows.clear()
    assert torch.equal(process.denoiser(COND, nested)(X, T).x0, expected.x0)
    assert process.network.rows == [6]
    swapped = Rescaled(Interval(4.0, 0.2, 0.8), 0.7)
    early = torch.tensor(0.9, dtype=torch.float64)
    torch.testing.assert_close(process.denoiser(COND, swapped)(X, early).x0, process.denoiser(COND)(X, early).x0)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("cond", [None, COND])
def test_autoguidance_takes_the_guide_in_the_place_of_the_null_condition(process, cond):
    make = PROCESSES[process]
    process, guide = make(Recorder()), make(Recorder(seed=1)).train()
    strong, weak = process.denoiser(cond)(X, T), guide.denoiser(cond)(X, T)
    guided = process.denoiser(cond, 2.0, guide=guide)(X, T)
    torch.testing.assert_close(guided.x0, weak.x0 + 2 * (strong.x0 - weak.x0))
    torch.testing.assert_close(guided.eps, weak.eps + 2 * (strong.eps - weak.eps))
    process.network.rows.clear(), guide.network.rows.clear(), guide.network.modes.clear()
    outside = Interval(2.0, 0.0, 0.5)
    process.sample(3, (4, 2, 2), cond, steps=4, solver="euler", guidance=outside, guide=guide, grid="uniform")
    assert (process.network.rows, guide.network.rows) == ([3] * 4, [3] * 2)
    assert guide.network.modes == [False] * 2
    assert guide.training
    assert process.evaluations == 12


def test_a_guide_may_have_another_target_but_not_another_path():
    guide = ditlab.DDPM(Recorder(seed=1), target="v")
    assert ditlab.DDPM(Recorder()).denoiser(None, 2.0, guide)(X, T).x0.isfinite().all()
    for other in (ditlab.FlowMatching(Recorder()), ditlab.DDPM(Recorder(), schedule="cosine")):
        with pytest.raises(ValueError, match="same process and schedule"):
            ditlab.DDPM(Recorder()).denoiser(None, 2.0, other)
    with pytest.raises(ValueError, match="pass guidance="):
        ditlab.DDPM(Recorder()).denoiser(None, None, guide)


def test_conditions_of_any_shape_are_guided_together():
    cond = {
        "label": torch.tensor([1, 2, 0]),
        "text": torch.randn(3, 5, 2, generator=generator_for(4)),
        "text_mask": torch.tensor([[True] * 5, [True, False, True, True, False], [False] * 5]),
        "interval": torch.tensor([0.1, 0.2, 0.3]),
    }
    process = ditlab.FlowMatching(Recorder())
    null = {name: value if name == "interval" else torch.zeros_like(value) for name, value in cond.items()}
    strong, weak = process.denoiser(cond)(X, T), process.denoiser(null)(X, T)
    guided = process.denoiser(cond, 2.5)(X, T)
    torch.testing.assert_close(guided.x0, weak.x0 + 2.5 * (strong.x0 - weak.x0))
    dropped = ditlab.FlowMatching(Recorder(), condition_dropout=1.0).drop(cond, generator_for(0))
    assert all(torch.equal(dropped[name], null[name]) for name in cond)


def test_the_strong_passes_variance_is_kept():
    network = ditlab.DiT(image_size=8, channels=4, dim=16, depth=1, heads=2, num_classes=3, learned_variance=True)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator_for(1))
    x, t = torch.randn(3, 4, 8, 8, generator=generator_for(2)), torch.tensor(0.5)
    process = ditlab.DDPM(network)
    strong = process.denoiser(COND)(x, t)
    raw = network(x, t.expand(3), COND)[:, 4:]
    torch.testing.assert_close(strong.variance, (raw + 1) / 2)
    for guidance in (2.0, ClassifierFree(2.0, 3), Rescaled(2.0, 0.5), Interval(2.0, 0, 1)):
        torch.testing.assert_close(process.denoiser(COND, guidance)(x, t).variance, strong.variance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree(2.0, channels=0), "at least 1"),
        (lambda: Interval(2.0, 0.7, 0.3), "low < high"),
        (lambda: Interval(2.0, 0.7, 1.3), "<= 1"),
        (lambda: Rescaled(2.0, 1.5), "between 0 and 1"),
    ],
)
def test_errors_name_the_fix(make, message):
    with pytest.raises(ValueError, match=message):
        make()
