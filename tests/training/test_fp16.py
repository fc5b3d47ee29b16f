"""Training in fp16: the loss scale, against torch's own; what an overflow does; and that a run goes on with it."""

import json
import math

import pytest
import torch

from ditlab.core.errors import TrainingError
from ditlab.core.rng import generator_for
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training import spikes as guard
from ditlab.training.loop import TrainState, train
from ditlab.training.spikes import Guard, summary
from tests.diffusion.test_process import shaken
from tests.training.test_fit import Nobody, everything, tiny


def test_the_scale_goes_the_way_of_torchs(monkeypatch):
    """``torch.amp.GradScaler`` over the same overflows, down to a loss scale of 1, where ours ends."""
    monkeypatch.setattr(guard, "STEADY", 4)
    own, theirs = Guard(10, 3, scaled=True), torch.amp.GradScaler("cpu", growth_interval=4)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for bad in (torch.rand(200, generator=generator_for(0)) < 0.2).tolist():
        theirs.scale(weight.sum()).backward()
        weight.grad.fill_(math.inf if bad else 1.0)
        theirs.step(optimizer)
        theirs.update()
        objection = own.objection(1.0, math.inf if bad else 1.0)
        own.note(1.0, objection)
        assert (objection is not None) == bad
        assert own.scale == theirs.get_scale()
        assert own.in_a_row == 0


def test_an_overflow_counts_where_the_scale_can_fall_no_further():
    one = Guard(10, 3, scaled=True)
    for power in range(16, 0, -1):
        objection = one.objection(1.0, math.nan)
        assert objection == f"overflow of fp16: gradient norm is nan at a loss scale of {2**power}"
        one.note(1.0, objection)
    for _ in range(3):
        assert not one.gives_up
        assert one.objection(1.0, math.nan) == "gradient norm is nan"
        one.note(1.0, "gradient norm is nan")
    assert one.gives_up
    assert one.scale == 1


def test_a_loss_that_is_not_finite_is_no_overflow_of_gradients():
    one = Guard(10, 3, scaled=True)
    one.note(math.nan, one.objection(math.nan, math.nan))
    assert (one.scale, one.in_a_row) == (2**16, 1)


def test_the_guard_goes_on_from_its_scale():
    one, other = (Guard(10, 3, scaled=True) for _ in range(2))
    for loss, norm in ((1.0, math.inf), (1.0, 1.0), (2.0, 1.0)):
        one.note(loss, one.objection(loss, norm))
    other.take_facts(json.loads(json.dumps(one.facts())))
    assert (other.scale, other.steady) == (one.scale, one.steady) == (2**15, 2)
    assert set(Guard(10, 3).facts()) == {"mean", "learned", "in_a_row"}


def test_the_summary_has_overflows():
    assert "(1 spike, 2 overflows, 1 not finite)" in summary(["overflow of", "spike: a", "loss is nan", "overflow of"])


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_scaling_the_loss_changes_no_bit_of_gradients_that_fit(accumulate):
    """In fp32 they do, and the scale is a power of two."""
    gradients = []
    for scale in (1.0, 2.0**16):
        made = tiny(accumulate=accumulate)
        state = TrainState(made, build_dataset(made))
        torch.manual_seed(0)
        shaken(state.network)
        state.guard.scale = scale
        step = next(train(state, build_dataset(made)))
        gradients.append(
            [step.loss, step.grad_norm, *(p.grad for p in state.network.parameters() if p.grad is not None)]
        )
    assert all(map(torch.equal, *gradients))


def test_a_run_finds_its_scale_and_goes_on_with_it(tmp_path, monkeypatch):
    """From one so large that gradients overflow, with one bad step allowed; resumed, it ends with the same bytes."""
    monkeypatch.setattr(guard, "FIRST_SCALE", 2.0**32)
    made = tiny(precision="fp16", bad_steps=1, steps=24, checkpoint_every=4, preview_every=24)
    fit(made, RunFolder(tmp_path / "whole"), watcher=Nobody())
    lines = [line["skipped"] for line in RunFolder(tmp_path / "whole").read_metrics() if "skipped" in line]
    assert 4 < len(lines) < 20
    assert all(line.startswith("overflow of fp16") for line in lines)

    class PullsThePlug(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            if step == 6:
                raise SystemExit

    with pytest.raises(SystemExit):
        fit(made, RunFolder(tmp_path / "cut"), watcher=PullsThePlug())
    fit(made, RunFolder(tmp_path / "cut"), watcher=Nobody(), resume=True)
    facts = [json.loads(next((tmp_path / n).rglob("step-00000024/state.json")).read_text()) for n in ("whole", "cut")]
    assert facts[0] == facts[1]
    assert facts[0]["guard"]["scale"] == 2.0 ** (32 - len(lines))
    (a, b, _), (d, e, _) = everything(tmp_path / "whole"), everything(tmp_path / "cut")
    assert b == e
    assert all(torch.equal(a[name][key], d[name][key]) for name in a for key in a[name])


def test_products_are_in_fp16_and_what_ends_training_says_so():
    made = tiny(precision="fp16", bad_steps=1, spike_factor=1.5)
    state, seen = TrainState(made, build_dataset(made)), []
    state.network.blocks[0].attn.qkv.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    state.guard.learned, state.guard.mean = guard.SETTLED, 1e-9
    with pytest.raises(TrainingError, match="or --precision fp32"):
        list(train(state, build_dataset(made)))
    assert set(seen) == {torch.float16}


@pytest.mark.cuda
def test_fp16_on_cuda(tmp_path):
    fit(tiny(precision="fp16", device="cuda"), RunFolder(tmp_path / "r"), watcher=Nobody())
    assert RunFolder(tmp_path / "r").step == 6
