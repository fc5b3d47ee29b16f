"""When training is compiled where nothing was said, and that a machine that cannot compile is told so and trains."""

import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from ditlab.cli.train_arguments import parse_train
from ditlab.config import Config, UNetConfig
from ditlab.data.circles import Circles
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training import compilation as compiled
from ditlab.training.loop import TrainState, compiled_over_written
from tests.training.test_fit import Nobody


def circles(**changes) -> Config:
    return RECIPES["circles"]().model_copy(update={"device": "cpu", **changes})


@pytest.mark.parametrize(
    ("changes", "pays"),
    [
        ({}, True),
        ({"steps": 100}, False),
        ({"batch_size": 8}, False),
        ({"recompute": True}, False),
        ({"network": UNetConfig()}, False),
    ],
)
def test_long_trainings_of_a_dit_are_compiled(changes, pays):
    config = circles(**changes)
    assert compiled.pays(config, build_dataset(config)) is pays
    assert not compiled.pays(config, build_dataset(config), world=2)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], "auto"),
        (["--compile"], True),
        (["--compile", "--steps", "5"], True),
        (["--no-compile"], False),
        (["--compile", "True"], True),
        (["--compile=False"], False),
    ],
)
def test_the_flag_stands_alone_or_says_how(words, meant):
    assert parse_train(["circles", *words]).config.compile == meant
    assert parse_train(["--resume", "runs/x", *words]).compile == (meant if words else None)


def test_without_a_compiler_training_says_so_and_goes_on_unless_compiled_code_was_asked_for(tmp_path):
    script = f"""
from ditlab.core.errors import InputError
from tests.training.test_compiled import short_run
try:
    short_run({str(tmp_path / "asked")!r}, compile=True)
except InputError as error:
    assert "--no-compile" in str(error), error
else:
    raise AssertionError("it trained")
notices = short_run({str(tmp_path / "r")!r})
assert len(notices) == 2 and notices[-1].startswith("trains without torch.compile"), notices
"""
    nothing = {"CXX": "/nowhere/g++", "PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], check=True, env={**environment(), **nothing})
    assert RunFolder(tmp_path / "r").read_config().compile is False
    assert not (tmp_path / "asked" / "config.json").exists()


def test_code_that_is_slower_compiled_is_run_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr("ditlab.train.rehearse", lambda state, dataset: None)
    monkeypatch.setattr(compiled, "PAYS_FROM", 0.0)
    for ratio, kept in ((1.5, False), (0.8, True)):
        monkeypatch.setattr("ditlab.train.compiled_over_written", lambda state, dataset, ratio=ratio: ratio)
        notices = []
        watcher = Nobody()
        watcher.notice = notices.append
        monkeypatch.setattr("ditlab.train._train", lambda *_: None)
        run = fit(circles(steps=1, batch_size=4), RunFolder(tmp_path / str(kept)), watcher=watcher)
        assert run.config.compile is kept
        assert any("1.5 times as long" in notice for notice in notices) is not kept


def test_timing_both_ways_leaves_nothing_behind():
    config = circles(steps=2, batch_size=4, precision="fp32", compile=False)
    state = TrainState(config, Circles())
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    slow = state.network.forward
    state.network._compiled_call_impl = lambda *a, **k: (time.sleep(0.2), slow(*a, **k))[1]  # "compiled code"
    assert compiled_over_written(state, Circles()) > 1
    assert all(p.grad is None for p in state.network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.network.state_dict().items())


def environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def short_run(path: str, **changes) -> list[str]:
    """Two steps of circles in a place where every training is long; what the watcher was told."""
    compiled.PAYS_FROM = 0.0
    notices: list[str] = []
    watcher = Nobody()
    watcher.notice = notices.append  # type: ignore[method-assign]
    fit(circles(steps=2, batch_size=4, averages=(), **changes), RunFolder(path), watcher=watcher)
    return notices


def test_hooks_fire_while_a_compiled_network_runs_as_written():
    network, seen = torch.nn.Sequential(torch.nn.Linear(2, 2)), []
    compiled.compile_network(network, whole=True)
    network[0].register_forward_hook(lambda *_: seen.append(1))
    with compiled.uncompiled(network):
        network(torch.randn(1, 2))
    assert seen == [1]
    assert network._compiled_call_impl is not None


@pytest.mark.slow
def test_a_compiled_run_that_is_resumed_ends_as_the_uninterrupted_one(tmp_path):
    script = f"from tests.training.test_compiled import interrupted; interrupted({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, **environment()})
    ends = [load_file(tmp_path / name / "checkpoints/step-00000012/ema.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def interrupted(path: str) -> None:
    """Two compiled runs, alike but that one is stopped and resumed, with all that happens between steps."""
    often = {"steps": 12, "batch_size": 8, "accumulate": 2, "compile": True, "schedule": "constant"}
    often |= {"record_every": 3, "preview_every": 4, "checkpoint_every": 6, "log_every": 1}
    fit(circles(**often), RunFolder(f"{path}/whole"), watcher=Nobody())
    halves = RunFolder(f"{path}/halves")
    fit(circles(**often | {"steps": 6}), halves, watcher=Nobody())
    fit(circles(**often), halves, watcher=Nobody(), resume=True)
