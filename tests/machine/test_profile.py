import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from ditlab.core.errors import Caution
from ditlab.machine import profile as module
from ditlab.machine.profile import VARIABLES, Profile, keep, measure

LIKE_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SLOW_BF16 = Profile(
    processor="some",
    threads=2,
    bf16=0.1,
    muon_bf16=0.05,
    onednn={"1000": 0.3, "100000": 0.98, "10000000": 1.2},
    written_out={"16": 0.9, "16 training": 1.2, "256": 0.4},
    seconds=1.0,
)
FAST_BF16 = dataclasses.replace(
    SLOW_BF16,
    bf16=2.0,
    muon_bf16=3.0,
    onednn={"1000": 0.3, "100000": 2.0, "10000000": 2.0},
    written_out={"16": 1.3, "16 training": 0.8, "16 bf16": 0.9, "256": 1.5, "256 bf16": 2.0},
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    module.profile.cache_clear()
    yield tmp_path / "cache"
    module.profile.cache_clear()


def test_what_is_quicker_is_chosen():
    assert (SLOW_BF16.precision, SLOW_BF16.muon) == ("fp32", "fp32")
    assert SLOW_BF16.kernels == (10_000_000, 0, 32, 0)
    assert (FAST_BF16.precision, FAST_BF16.muon) == ("bf16", "bf16")
    assert FAST_BF16.kernels == (100_000, 512, 0, 512)


@pytest.mark.parametrize("gains", [{}, {"1000": 0.3, "100000": 0.9}, {"1000": 0.0}])
def test_onednn_is_not_asked_where_it_gains_nothing(gains):
    assert dataclasses.replace(SLOW_BF16, onednn=gains).kernels.onednn_from is None


def test_measured_once_and_kept(cache, monkeypatch):
    monkeypatch.setattr(module, "measure", lambda: SLOW_BF16)
    assert module.profile() == SLOW_BF16
    monkeypatch.setattr(module, "measure", lambda: FAST_BF16)
    module.profile.cache_clear()
    assert module.profile() == SLOW_BF16  # from the file
    monkeypatch.setenv(VARIABLES[0], "default")  # another processor is played
    module.profile.cache_clear()
    assert module.profile() == FAST_BF16
    assert len(list((cache / "machine").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"processor": 1}', json.dumps({**SLOW_BF16.__dict__, "onednn": 7})])
def test_a_damaged_file_is_measured_anew(cache, monkeypatch, text):
    keep(SLOW_BF16)
    (file,) = (cache / "machine").iterdir()
    file.write_text(text)
    monkeypatch.setattr(module, "measure", lambda: FAST_BF16)
    assert module.profile() == FAST_BF16


def test_where_nothing_can_be_kept_it_is_measured(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(module, "measure", lambda: FAST_BF16)
    module.profile.cache_clear()
    with pytest.warns(Caution, match="set DITLAB_CACHE to a folder"):
        assert module.profile() == FAST_BF16
    module.profile.cache_clear()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_measuring_leaves_no_trace_and_fills_every_figure_in_any_mode(mode):
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    with mode():
        found = measure()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before)
    figures = [found.bf16, found.muon_bf16, *found.onednn.values(), *found.written_out.values()]
    assert all(gain >= 0 for gain in figures)
    assert all(found.written_out[name] > 0 for name in ("16", "256", "16 training"))
    assert found.seconds > 0
    assert {"16", "256", "16 training"} <= set(found.written_out)
    assert len(list(found.lines())) == 6


def test_an_older_processor_can_be_played(cache, in_tmp):
    """Training goes through, with what was measured under these variables, and says so in its configuration."""
    environment = {**os.environ, **LIKE_AVX2}
    words = [sys.executable, "-m", "ditlab", "train", "circles", "--steps", "2"]
    said = subprocess.run(words, check=True, env=environment, capture_output=True, text=True).stderr
    (file,) = (cache / "machine").iterdir()
    found, config = (
        Profile(**json.loads(file.read_text())),
        json.loads((in_tmp / "runs/circles/config.json").read_text()),
    )
    assert config["precision"] == found.precision
    assert config["optimizer"]["precision"] == found.muon
    assert config["kernels"] == found.kernels._asdict()
    assert f"{found.precision} products" in said


@pytest.mark.slow
def test_code_that_was_compiled_for_another_processor_is_not_run(tmp_path):
    """torch 2.13 finds it in its cache, and gets NaN."""
    script = (
        "import torch; from ditlab import DiT; from ditlab.training.compilation import compile_network\n"
        "torch.manual_seed(0); net = DiT(); compile_network(net, whole=True)\n"
        "loss = (net(torch.randn(32, 1, 16, 16), torch.rand(32)) - 1).square().mean(); loss.backward()\n"
        "assert all(p.grad.isfinite().all() for p in net.parameters())"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for played in ({}, LIKE_AVX2, {}):
        subprocess.run([sys.executable, "-c", script], check=True, env=environment | played)
