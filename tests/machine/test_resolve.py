import pytest
import torch

from ditlab.config import AdamWConfig, KernelsConfig
from ditlab.machine import resolve
from ditlab.machine.resolve import computing_as, products_of, resolved, settled, use_quickest
from ditlab.networks import kernels
from ditlab.recipes import RECIPES
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from tests.machine.test_profile import FAST_BF16, SLOW_BF16
from tests.training.test_fit import Nobody

SHAPE = (1, 16, 16)


class Stopping(Nobody):
    def progress(self, step, loss, images_per_s, seconds_left):
        if step == 3:
            raise RuntimeError("power cut")


def circles(**changes):
    small = {"device": "cpu", "batch_size": 8, "steps": 4, "compile": False, "checkpoint_every": 2, "log_every": 1}
    return RECIPES["circles"]().model_copy(update=small | changes)


@pytest.fixture
def machine(monkeypatch):
    """What the machine was measured to be: a list, of which the last counts."""
    measured = [SLOW_BF16]
    monkeypatch.setattr(resolve, "profile", lambda: measured[-1])
    return measured


def test_what_was_chosen_stays_on_another_machine(machine):
    config, _ = settled(circles(), SHAPE)
    assert (config.precision, config.optimizer.precision) == ("fp32", "fp32")
    assert config.kernels == KernelsConfig(**SLOW_BF16.kernels._asdict())
    machine.append(FAST_BF16)
    assert resolved(config) == config
    assert settled(config, SHAPE)[0] == config
    assert resolved(circles()).precision == "bf16"


def test_what_was_asked_for_is_done(machine):
    asked = circles(precision="bf16", threads=1, optimizer=AdamWConfig())
    config, lines = settled(asked, SHAPE)
    assert (config.precision, config.threads, config.optimizer) == ("bf16", 1, AdamWConfig())
    warning = "bf16 is 10.0 times slower than fp32 on this processor: a new run is faster with --precision fp32"
    assert warning in lines
    assert warning not in settled(circles(), SHAPE)[1]


def test_no_more_threads_than_there_are_here(machine, monkeypatch):
    monkeypatch.setattr(resolve, "limit", lambda: 4)
    config, lines = settled(circles(threads=64), SHAPE)
    assert config.threads == 4
    assert "64 threads were requested, but only 4 can run at once" in lines
    assert settled(circles(threads=64), SHAPE, world=2)[0].threads == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the other process is on another machine
    assert settled(circles(threads=64), SHAPE, world=2)[0].threads == 4


@pytest.mark.parametrize(
    ("threads", "best", "gain", "used", "said"),
    [
        (None, 1, 110.0, 1, "other work keeps the processor busy: more threads would be 110 times slower"),
        (None, 1, 1.3, 1, None),
        (None, 4, 1.0, 4, None),
        (2, 1, 110.0, 2, "other work keeps the processor busy: --threads 1 would be 110 times as fast"),
        (2, 4, 1.0, 2, "this run uses 2 of 4 threads; --resume with --threads 4 uses them all"),
        (4, 4, 1.0, 4, None),
    ],
)
def test_what_is_said_of_threads(machine, monkeypatch, threads, best, gain, used, said):
    monkeypatch.setattr(resolve, "limit", lambda: 4)
    monkeypatch.setattr(resolve, "quickest", lambda rows, width, most: (best, gain))
    config, (first, *more) = settled(circles(threads=threads), SHAPE)
    assert config.threads == used
    assert first.startswith(f"{used} thread")
    assert more == ([] if said is None else [said])


def test_products_are_about_those_of_the_network():
    assert products_of(circles(), SHAPE, 8) == (8 * 16, 64)
    assert products_of(RECIPES["points"](), (2,), 8) == (8, RECIPES["points"]().network.hidden)


def test_threads_and_kernels_hold_within_and_not_after():
    config = circles(threads=torch.get_num_threads() + 1, kernels=KernelsConfig(**SLOW_BF16.kernels._asdict()))
    before = kernels._used, torch.get_num_threads()
    with computing_as(config):
        assert kernels._used == SLOW_BF16.kernels
        assert torch.get_num_threads() == before[1] + 1
    assert (kernels._used, torch.get_num_threads()) == before


def test_a_run_goes_on_as_it_began_to_the_same_bytes(machine, tmp_path):
    """Stopped on a machine where bf16 is slow, gone on with where it is fast."""
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    expected = fit(circles(), whole, watcher=Nobody())
    with pytest.raises(RuntimeError, match="power cut"):
        fit(circles(), cut, watcher=Stopping())
    machine.append(FAST_BF16)
    found = fit(cut.read_config(), cut, watcher=Nobody(), resume=True)
    assert cut.config_file.read_bytes() == whole.config_file.read_bytes()
    assert found.config.kernels == KernelsConfig(**SLOW_BF16.kernels._asdict())
    for name, tensor in expected.process.network.state_dict().items():
        assert torch.equal(tensor, found.process.network.state_dict()[name]), name


def test_threads_are_chosen_for_where_a_run_is_used_and_not_where_it_was_trained(monkeypatch):
    asked = []
    now = torch.get_num_threads(), 1.0
    monkeypatch.setattr(resolve, "quickest", lambda rows, width, most: asked.append(most) or now)
    trained_on_a_gpu = circles(device="cuda")
    use_quickest(trained_on_a_gpu, SHAPE, 4, torch.device("meta"))
    assert asked == []
    use_quickest(trained_on_a_gpu, SHAPE, 4, torch.device("cpu"))
    assert len(asked) == 1
