"""Which steps are learned from, what is kept of those that are not, and batches run in parts."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ditlab
from ditlab.core.errors import TrainingError
from ditlab.core.rng import generator_for
from ditlab.data.dataset import Batch
from ditlab.diffusion.meanflow import MeanFlow
from ditlab.runs.build import build_dataset
from ditlab.training.bad_batches import save_failure
from ditlab.training.loop import TrainState, train
from ditlab.training.spikes import SETTLED, Guard, summary
from tests.diffusion.test_process import shaken
from tests.reliability.faulty import Faulty, config
from tests.training.test_fit import tiny


def watched(guard, losses):
    objections = []
    for loss in losses:
        objections.append(guard.objection(loss, 1.0))
        guard.note(loss, objections[-1])
    return objections


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_objected_to_from_the_first_step(bad):
    guard = Guard(10, 3)
    assert guard.objection(1.0, 1.0) is None
    assert guard.objection(bad, 1.0) == f"loss is {bad}"
    assert guard.objection(1.0, bad) == f"gradient norm is {bad}"


def test_a_spike_is_so_many_times_the_running_mean_of_what_was_learned_from():
    losses = (1 + 0.5 * torch.rand(400, generator=generator_for(0), dtype=torch.float64)).tolist()
    mean = sum(losses[:100]) / 100  # plain at first, then exponential, by its closed form
    weights = [0.99**k for k in range(300)]
    mean = 0.99**300 * mean + 0.01 * sum(w * loss for w, loss in zip(weights, reversed(losses[100:]), strict=True))
    guard = Guard(10, 3)
    assert watched(guard, losses) == [None] * 400
    assert guard.mean == pytest.approx(mean, rel=1e-9)
    assert guard.objection(9.99 * mean, 1.0) is None
    assert guard.objection(10.01 * mean, 1.0).startswith("spike: loss")
    watched(guard, [20 * mean, math.nan])
    assert guard.mean == pytest.approx(mean, rel=1e-9)
    assert guard.in_a_row == 2
    assert not guard.gives_up
    watched(guard, [1e9])
    assert guard.gives_up
    watched(guard, [1.0])
    assert guard.in_a_row == 0


def test_no_spike_is_seen_before_enough_was_seen():
    assert watched(Guard(10, 3), [1.0] * (SETTLED - 1) + [1e6]) == [None] * SETTLED
    assert watched(Guard(10, 3), [1.0] * SETTLED + [1e6])[-1] is not None


def test_losses_around_zero_are_no_spikes():
    """As a bound on a density has them: what counts is their size."""
    losses = torch.randn(2000, generator=generator_for(1)).tolist()
    assert watched(Guard(10, 3), losses) == [None] * 2000


def test_the_guard_goes_on_from_its_facts():
    losses = [*torch.rand(300, generator=generator_for(2)).tolist(), math.nan, 50.0]
    one, other = Guard(10, 5), Guard(10, 5)
    watched(one, losses)
    other.take_facts(json.loads(json.dumps(one.facts())))
    assert other.facts() == one.facts()
    more = torch.rand(50, generator=generator_for(3)).mul(8).tolist()
    assert watched(one, more) == watched(other, more)


def test_a_running_mean_of_another_figure_starts_anew():
    """As in a MeanFlow run of when the weighted loss was looked at."""
    old = Guard(10, 5)
    watched(old, [*[0.5] * 300, math.nan])
    new = Guard(10, 5, "squared error")
    new.take_facts(json.loads(json.dumps(old.facts())))
    assert (new.mean, new.learned, new.in_a_row) == (0, 0, 1)
    assert watched(new, [40.0] * 300) == [None] * 300
    again = Guard(10, 5, "squared error")
    again.take_facts(json.loads(json.dumps(new.facts())))
    assert again.objection(401.0, 1.0).startswith("spike: squared error 401 is 10 times")


@pytest.mark.parametrize(
    ("objections", "line"),
    [
        (["loss is nan"], "1 step was not learned from (1 not finite): see metrics.jsonl"),
        (["spike: a", "loss is inf", "spike: b"], "3 steps were not learned from (2 spikes, 1 not finite)"),
        (["spike: a"], "1 step was not learned from (1 spike)"),
    ],
)
def test_the_summary_counts_by_kind(objections, line):
    assert summary(objections).startswith(line)


def content(state):
    return [t.clone() for part in state.tensors().values() for t in part.values()]


@pytest.mark.parametrize("recipe", ["circles", "points"])
def test_a_skipped_step_changes_nothing_but_the_step(recipe):
    """Neither weights nor averages nor what Muon and AdamW remember; and the next step has its own data and draws."""
    made = tiny(recipe, steps=6)
    data = build_dataset(made)

    positions = []

    class Poisoned:
        shape, conditions = data.shape, data.conditions

        def batch(self, seed, position, size):
            positions.append(position)
            x0, cond = data.batch(seed, position, size)
            return Batch(x0 * math.nan if position // size in (2, 3) else x0, cond)

    state, poisoned = TrainState(made, data), Poisoned()
    before, steps = content(state), []
    for step in train(state, poisoned):
        steps.append(step)
        after = content(state)
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert same == (step.step in (3, 4))
        assert (step.skipped == "loss is nan") == same
        before = after
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.lr for step in steps] == [step.lr for step in train(TrainState(made, data), data)]
    assert positions == [8 * i for i in range(6)]
    assert all(t.isfinite().all() for t in before)


def test_a_weight_hides_no_spike():
    """MeanFlow's loss stays below 1: its guard sees the squared error, which a weight of power 0 leaves as the loss."""
    process = ditlab.config.MeanFlowConfig()
    made = config(steps=SETTLED + 2, accumulate=2, process=process)
    state = TrainState(made, Faulty({}))
    plain = MeanFlow(state.network, **process.model_dump(exclude={"kind"}) | {"adaptive_power": 0.0})
    steps, errors = train(state, Faulty({SETTLED + 1: "everything huge"})), []
    for done in range(SETTLED):
        generator = generator_for(0, "train", done, 0)
        x0 = Faulty({}).batch(0, 8 * done, 8).x0.chunk(2)
        with torch.no_grad():
            errors.append(float(torch.cat([plain.losses(part, generator=generator) for part in x0]).mean()))
        assert next(steps).skipped is None
    assert state.guard.mean == pytest.approx(sum(errors) / SETTLED, rel=1e-5)
    spike = next(steps)
    assert spike.loss < 1
    assert spike.skipped.startswith("spike: squared error")
    assert next(steps).skipped is None


def test_too_many_in_a_row_end_training():
    made = config(steps=20, bad_steps=3)
    state = TrainState(made, Faulty({}))
    seen = []
    with pytest.raises(
        TrainingError, match=r"3 steps in a row up to step 9 .*\(loss is nan\): in a new run, try --lr 0.0001"
    ) as stop:
        seen.extend(train(state, Faulty({2: "nan", 3: "nan", 5: "nan", 7: "nan", 8: "nan", 9: "nan", 10: "nan"})))
    assert "\n" not in str(stop.value)
    assert state.step == 9


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("process", ["flow", "ddpm", "meanflow"])
def test_a_failure_is_kept_with_the_draws_of_its_step(tmp_path, process, accumulate):
    """The losses of the samples, drawn and computed anew, are those that made the loss of the step."""
    made = tiny("digits", accumulate=accumulate)
    if process != "flow":
        kind = ditlab.config.KINDS["process"][process]
        made = tiny("digits", accumulate=accumulate, process=kind())
    data = build_dataset(made)
    state = TrainState(made, data)
    with torch.no_grad():
        shaken(state.network)
    steps = train(state, data)
    next(steps)
    weights = {name: t.clone() for name, t in state.network.state_dict().items()}
    step = next(steps)
    state.network.load_state_dict(weights)  # as they are if the step is skipped
    path = save_failure(tmp_path, state, data, step._replace(skipped="spike"))
    told, kept = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    assert kept["loss"].mean().item() == pytest.approx(float(step.loss), rel=1e-6)
    assert torch.equal(kept["x0"], data.batch(0, 8, 8).x0)
    assert torch.equal(kept["label"], data.batch(0, 8, 8).cond["label"])
    assert [sample["position"] for sample in told["samples"]] == list(range(8, 16))
    assert [sample["loss"] for sample in told["samples"]] == kept["loss"].tolist()
    assert [sample["t"] for sample in told["samples"]] == kept["t"].tolist()
    assert told["step"] == 2
    assert kept["t"].shape == ((8, 2) if process == "meanflow" else (8,))
    if process == "meanflow":
        torch.testing.assert_close(kept["loss"], kept["error"] / (kept["error"] + 1e-3))
        assert told["samples"][3]["error"] == kept["error"][3]
    else:
        assert "error" not in kept


def test_a_failure_names_the_samples_and_survives_what_is_no_number(tmp_path):
    data = Faulty({1: "nan"})
    state = TrainState(config(), data)
    step = next(train(state, data))
    path = save_failure(tmp_path, state, data, step)
    told = json.loads(path.read_text())
    assert path.name == "step-00000001.json"
    assert (told["loss"], told["skipped"]) == ("nan", "loss is nan")
    assert [sample["loss"] == "nan" for sample in told["samples"]] == [i == 3 for i in range(8)]
    assert told["samples"][3]["index"] == 21
    assert told["samples"][3]["name"] == "point 21"


@pytest.mark.parametrize("make", [ditlab.FlowMatching, ditlab.DDPM, MeanFlow])
def test_times_drawn_first_change_no_loss(make):
    """``losses`` at the times that ``draw_times`` gives, with the same generator, is ``losses``."""
    network = shaken(ditlab.DiT(dim=16, depth=1, heads=2, num_classes=3, interval=make is MeanFlow))
    process, x0 = make(network), torch.randn(6, 1, 16, 16, generator=generator_for(4))
    cond = {"label": torch.arange(6) % 3}
    generator = generator_for(5)
    t = process.draw_times(6, generator, "cpu")
    assert torch.equal(
        process.losses(x0, cond, generator=generator, t=t), process.losses(x0, cond, generator=generator_for(5))
    )


@pytest.mark.parametrize("recipe", ["circles", "points", "digits"])
@pytest.mark.parametrize("accumulate", [2, 8])
def test_a_batch_in_parts_is_the_mean_of_the_parts(recipe, accumulate):
    """Against one backward pass of the mean of the parts' losses, one generator going through, then clipped."""
    made = tiny(recipe, accumulate=accumulate, grad_clip=0.01)
    data = build_dataset(made)
    state, twin = TrainState(made, data), TrainState(made, data)
    for one in (state, twin):
        torch.manual_seed(0)
        shaken(one.network)
    x0, cond = data.batch(0, 0, 8)
    generator = generator_for(0, "train", 0, 0)
    size = 8 // accumulate
    losses = [
        twin.process.losses(x0[i : i + size], {k: v[i : i + size] for k, v in cond.items()}, generator=generator)
        for i in range(0, 8, size)
    ]
    mean = torch.cat(losses).mean()
    mean.backward()
    norm = torch.cat([p.grad.flatten() for p in twin.network.parameters() if p.grad is not None]).norm()
    step = next(train(state, data))
    assert float(step.loss) == pytest.approx(float(mean.detach()), rel=1e-5)
    assert float(step.grad_norm) == pytest.approx(float(norm), rel=1e-4)
    clipped = torch.cat([p.grad.flatten() for p in state.network.parameters() if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)
    for a, b in zip(state.network.parameters(), twin.network.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad * 0.01 / norm, rtol=2e-3, atol=1e-7)


def test_parts_at_given_times_and_noise_are_the_whole_batch():
    """What the parts add up to does not depend on how many there are, once nothing is drawn."""

    class Fixed(nn.Module):
        """The loss of a network at t = 1/2 without noise."""

        unweighted = None

        def __init__(self, network):
            super().__init__()
            self.network = network

        def loss(self, x0, cond, generator):
            t = torch.full((len(x0),), 0.5)
            return (self.network(x0 / 2, t, cond) + x0).square().flatten(1).mean(1).mean()

    gradients = []
    for accumulate in (1, 2, 4):
        made = tiny("digits", accumulate=accumulate, grad_clip=1e9)
        data = build_dataset(made)
        state = TrainState(made, data)
        torch.manual_seed(0)
        state.process = Fixed(shaken(state.network))
        next(train(state, data))
        gradients.append(torch.cat([p.grad.flatten() for p in state.network.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-4, atol=1e-6)
    assert gradients[0].norm() > 0.1
