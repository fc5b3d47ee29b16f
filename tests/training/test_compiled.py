"""When training is compiled where nothing was said, and that a machine that cannot compile is told so and trains."""

import os
import subprocess
import sys

import pytest
import torch

from ditlab.build import build_dataset
from ditlab.cli.options import parse_train
from ditlab.config import Config, UNetConfig
from ditlab.fit import fit
from ditlab.recipes import RECIPES
from ditlab.run import RunFolder
from ditlab.training import compiled
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
        (["--compile", "auto"], "auto"),
        (["--compile=False"], False),
    ],
)
def test_the_flag_stands_alone_or_says_how(words, meant):
    assert parse_train(["circles", *words]).config.compile == meant


def test_without_a_compiler_training_says_so_and_goes_on(tmp_path):
    script = f"""
import sys
from tests.training.test_compiled import short_run
notices = short_run({str(tmp_path / "r")!r})
sys.exit(0 if len(notices) == 1 and notices[0].startswith("trains without torch.compile") else 1)
"""
    nothing = {"CXX": "/nowhere/g++", "PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], check=True, env={**environment(), **nothing})
    assert RunFolder(tmp_path / "r").read_config().compile is False


def environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def short_run(path: str) -> list[str]:
    """Two steps of circles in a place where every training is long; what the watcher was told."""
    compiled.PAYS_FROM = 0.0
    notices: list[str] = []
    watcher = Nobody()
    watcher.notice = notices.append  # type: ignore[method-assign]
    fit(RunFolder(path), circles(steps=2, batch_size=4, averages=()), watcher)
    return notices


def test_hooks_fire_while_a_compiled_network_runs_as_written():
    network, seen = torch.nn.Sequential(torch.nn.Linear(2, 2)), []
    compiled.compile_network(network, whole=True)
    network[0].register_forward_hook(lambda *_: seen.append(1))
    with compiled.uncompiled(network):
        network(torch.randn(1, 2))
    assert seen == [1]
    assert network._compiled_call_impl is not None
