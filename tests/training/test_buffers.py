"""Batch norms' running statistics: in averaged networks, after steps that are not learned from, and in files."""

import math

import pytest
import torch
from torch import nn

import ditlab
from ditlab.config import OwnConfig
from ditlab.core.errors import InputError
from ditlab.core.registry import NETWORKS
from ditlab.data.dataset import Batch
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.loop import TrainState, rehearse, train
from ditlab.training.make_ema import make_averages
from tests.reliability.test_guards import Nobody
from tests.training.test_fit import tiny

STATISTICS = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "seen")


@pytest.fixture(autouse=True)
def normed(monkeypatch):
    """A network with a batch norm, and a buffer that is kept in no file."""
    monkeypatch.setattr(NETWORKS, "parts", {})

    @ditlab.register_network("normed")
    class Normed(nn.Module):
        def __init__(self, shape, num_classes):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(math.prod(shape)), nn.Linear(math.prod(shape), math.prod(shape))
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
            self.register_buffer("passing", torch.zeros(3), persistent=False)

        def forward(self, x, t, cond=None):
            if self.training:
                self.seen += len(x)
            return self.linear(self.norm(x.flatten(1))).view_as(x)


def config(**changes):
    network = OwnConfig(name="normed")
    return tiny("points", steps=12, network=network, optimizer=ditlab.config.AdamWConfig(), **changes)


def statistics(network):
    return [network.state_dict()[name].clone() for name in STATISTICS]


def same(one, other):
    return all(map(torch.equal, one, other))


def test_the_averaged_network_has_the_latest_statistics():
    """By hand: torch's momentum of 0.1 over the noisy batches, from which nothing has to be averaged."""
    made = config()
    data = build_dataset(made)
    state = TrainState(made, data)
    mean, inputs = torch.zeros(2), []
    state.network.norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    for _ in train(state, data):
        mean = 0.9 * mean + 0.1 * inputs[-1].mean(0)
        torch.testing.assert_close(state.ema.network.norm.running_mean, mean)
        assert same(statistics(state.ema.network), statistics(state.network))
    assert state.ema.network.seen == 12 * made.batch_size


def test_what_is_not_learned_from_leaves_them_alone():
    made = config()
    data = build_dataset(made)

    class Poisoned:
        shape, conditions = data.shape, data.conditions

        def batch(self, seed, position, size):
            x0, cond = data.batch(seed, position, size)
            return Batch(x0 * math.nan if position == 3 * size else x0, cond)

    state = TrainState(made, data)
    before = statistics(state.network)
    assert rehearse(state, data) is None
    assert same(statistics(state.network), before)
    for step in train(state, Poisoned()):
        assert same(statistics(state.network), before) == (step.step == 4) == (step.skipped is not None)
        before = statistics(state.network)


def test_averages_in_files_have_those_of_their_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(config(checkpoint_every=6, keep_last=1, averages=(0.05, 0.1), average_every=2), folder, watcher=Nobody())
    latest = statistics(ditlab.load(folder.path, weights="raw").process.network)
    assert latest[-1] > 0
    made = make_averages(folder.path, [0.08])[0].folder.path
    for run in (ditlab.load(folder.path), ditlab.load(folder.path, weights=0.05), ditlab.load(made)):
        assert same(statistics(run.process.network), latest)
    with pytest.raises(InputError, match="the checkpoint of step 6 is not there"):
        make_averages(folder.path, [0.08], step=6)
