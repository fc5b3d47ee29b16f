"""MeanFlow runs and likelihoods on the command line."""

import json
import os
from pathlib import Path

import pytest

from ditlab.cli.main import main
from tests.cli.test_cli import SMALL, call
from tests.training.test_fit import files

TINY = [word for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if "sampling" not in pair[0] for word in pair]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small MeanFlow run of each recipe, and a flow."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    mean = ["--process", "meanflow", "--steps", "4"]
    try:
        assert main(["train", "circles", *mean, *TINY, "--precision", "bf16"]) == 0
        assert main(["train", "digits", *mean, *TINY, "--process.guidance", "2", "--process.guidance-mix", "0.2"]) == 0
        assert main(["train", "points", *mean, "--batch-size", "64"]) == 0
        assert main(["train", "circles", "--name", "flow", "--steps", "2", *TINY]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


@pytest.mark.parametrize("run", ["circles", "digits", "points"])
def test_one_step_is_the_default(here, capsys, run):
    assert json.loads((here / "runs" / run / "config.json").read_text())["sampling"]["solver"] == "average"
    assert (here / "runs" / run / "samples/step-00000004.png").exists()
    status, out, _ = call(capsys, "eval", run, "--n", 100, "--json")
    figures = json.loads(out)
    assert status == 0
    assert (figures["solver"], figures["steps"], figures["evaluations"]) == ("average", 1, 1)
    status, out, _ = call(capsys, "eval", run, "--n", 100, "--solver", "heun", "--steps", 3, "--json")
    assert (status, json.loads(out)["evaluations"]) == (0, 5)
    status, out, _ = call(capsys, "sample", run, "--n", 4, "--steps", 2, "--out", "a.npz", "--json")
    assert (status, json.loads(out)["steps"]) == (0, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "circles", "--name", "x", "--process", "meanflow", "--compile"], "leave compile out"),
        (["train", "circles", "--name", "x", "--process", "meanflow", "--network", "unet"], "dit or mlp"),
        (["train", "circles", "--name", "x", "--process", "meanflow", "--process.guidance", "2"], "no labels"),
        (["train", "digits", "--name", "x", "--process", "meanflow", "--sampling.guidance", "2"], "process.guidance"),
        (["train", "circles", "--name", "x", "--sampling.solver", "average"], "--process meanflow"),
        (["train", "circles", "--name", "x", "--process", "meanflow", "--process.times-std", "0"], "times_std=0"),
        (["sample", "digits", "--guidance", "2"], "process.guidance"),
        (["sample", "flow", "--solver", "average"], "unknown solver 'average'"),
        (["eval", "flow", "--nll", "--nll-n", "1"], "nll_n=1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_gets_a_short_message_and_leaves_nothing(unchecked, here, capsys, words, message):
    before = files(here)
    status, out, err = call(capsys, *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert files(here) == before


@pytest.mark.parametrize(
    ("run", "n", "unit", "trace"),
    [
        ("points", 50, "nats", "exact"),
        ("circles", 3, "bits/dim", "hutchinson"),
        ("digits", 3, "bits/dim", "hutchinson"),
    ],
)
def test_the_likelihood_says_what_decided_it(here, capsys, run, n, unit, trace):
    words = ["eval", run, "--n", 100, "--nll", "--nll-n", n, "--json"]
    status, out, _ = call(capsys, *words)
    figures = json.loads(out)
    assert status == 0
    assert (figures["nll_unit"], figures["nll_n"], figures["nll_trace"]) == (unit, n, trace)
    assert figures["nll_rtol"] == figures["nll_atol"] == 1e-5
    assert figures["nll_error"] > 0
    assert 0 < figures["nll"] < 20
    assert ("nll_floor" in figures) == (run == "points")  # eight Gaussians, whose density is known
    assert call(capsys, *words)[1] == out
    assert "nll" not in json.loads(call(capsys, *words[:4], "--json")[1])


def test_a_resumed_run_ends_as_an_uninterrupted_one(here, capsys):
    common = ["train", "circles", "--process", "meanflow", *TINY, "--precision", "fp32", "--checkpoint-every", 2]
    assert call(capsys, *common, "--steps", 4, "--name", "whole")[0] == 0
    assert call(capsys, *common, "--steps", 4, "--name", "cut")[0] == 0
    checkpoints = here / "runs/cut/checkpoints"
    (checkpoints / "LATEST").write_text("step-00000002")
    assert call(capsys, "train", "--resume", "cut")[0] == 0
    ends = [here / "runs" / name / "checkpoints/step-00000004/ema.safetensors" for name in ("whole", "cut")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_the_lab_walks_by_average_velocities(here):
    from ditlab.lab.lens.describe import describe
    from ditlab.lab.lens.lens import Lens

    lens = Lens(here / "runs/circles")
    about = describe(lens)
    assert "average" in about["solvers"]
    assert about["noise_path"] == "linear"
    answer = lens.trajectory(solver="average", steps=2, n=3)
    assert answer["x"].shape == (3, 3, 1, 16, 16)
    assert "average" not in describe(Lens(here / "runs/flow"))["solvers"]
