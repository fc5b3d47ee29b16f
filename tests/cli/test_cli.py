"""The command line as a person meets it: results on stdout, words on stderr, statuses, and nothing half-written."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditlab
from ditlab.cli.main import main

SMALL = ["--batch-size", "8", "--network.dim", "16", "--network.depth", "1", "--network.heads", "2"]
SMALL += ["--sampling.steps", "2", "--log-every", "2"]


def call(capsys, *words):
    """Exit status, stdout, stderr."""
    try:
        status = main([str(w) for w in words])
    except SystemExit as stop:  # how tyro ends
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def spawn(folder, *words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "ditlab", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One small run of each recipe."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "circles", "--steps", "4", "--checkpoint-every", "2", *SMALL]) == 0
        assert main(["train", "digits", "--steps", "4", *SMALL]) == 0
        assert main(["train", "points", "--data.name", "moons", "--network", "mlp", "--steps", "4"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def test_sample_pictures_and_arrays(here, capsys, tmp_path):
    assert call(capsys, "sample", "runs/circles", "--n", 9, "--steps", 2, "--out", tmp_path / "a.png")[0] == 0
    assert Image.open(tmp_path / "a.png").size == (3 * 68 + 4, 3 * 68 + 4)
    status, out, _ = call(
        capsys, "sample", "digits", "--n", 12, "--steps", 2, "--out", tmp_path / "a.npz", "--guidance", 3, "--json"
    )
    assert (status, json.loads(out)["guidance"]) == (0, 3)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["samples"].shape == (12, 1, 8, 8)
        assert arrays["samples"].dtype == np.float32
        assert arrays["labels"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
        assert arrays["labels"].dtype == np.int64
    assert call(capsys, "sample", "points", "--n", 50, "--steps", 2, "--out", tmp_path / "p.png")[0] == 0
    assert Image.open(tmp_path / "p.png").size[0] > 300
    assert call(capsys, "sample", "digits", "--n", 3, "--label", 7, "--steps", 2, "--out", tmp_path / "l.npz")[0] == 0
    with np.load(tmp_path / "l.npz") as arrays:
        assert arrays["labels"].tolist() == [7, 7, 7]


def test_all_that_was_drawn_with_is_recorded(here, capsys, tmp_path):
    out = tmp_path / "a.npz"
    drawing = ["--steps", 3, "--solver", "dpm-solver++3m", "--grid", "karras", "--shift", 2]
    guided = ["--guidance", 3, "--guidance-interval", 0.2, 0.8, "--guidance-rescale", 0.5, "--guidance-channels", 1]
    _, text, _ = call(capsys, "eval", "digits", "--n", 100, *drawing, *guided, "--json")
    expected = {"solver": "dpm-solver++3m", "steps": 3, "grid": "karras", "shift": 2, "guidance": 3}
    expected |= {"guidance_interval": [0.2, 0.8], "guidance_rescale": 0.5, "guidance_channels": 1, "evaluations": 4}
    assert expected.items() <= json.loads(text).items()
    _, text, _ = call(capsys, "sample", "digits", "--n", 4, *drawing, *guided, "--out", out, "--json")
    del expected["evaluations"]
    assert expected.items() <= json.loads(text).items()
    with np.load(out) as arrays:
        by_command = arrays["samples"]
    guidance = ditlab.Interval(ditlab.Rescaled(ditlab.ClassifierFree(3.0, 1), 0.5), 0.2, 0.8)
    same = ditlab.load("digits").sample(
        4, steps=3, solver="dpm-solver++3m", grid="karras", shift=2.0, guidance=guidance
    )
    np.testing.assert_array_equal(by_command, same.numpy())
    _, text, _ = call(capsys, "eval", "circles", "--n", 50, "--solver", "dopri5", "--steps", 1, "--json")
    assert json.loads(text)["evaluations"] > 1
    assert json.loads(text)["grid"] == "uniform"


def test_a_weaker_run_guides_an_unlabelled_one(here, capsys, tmp_path):
    guided = ["--guidance", 3, "--guide", "circles", "--guide-step", 2]
    words = ["--n", 4, "--steps", 2, "--weights", "raw", "--json", *guided]
    _, text, _ = call(capsys, "sample", "circles", *words, "--out", tmp_path / "a.npz")
    figures = json.loads(text)
    assert (figures["guide"], figures["guide_step"], figures["guidance"]) == ("runs/circles", 2, 3)
    strong, weak = ditlab.load("circles", weights="raw"), ditlab.load("circles", weights="raw", step=2)
    drawn = strong.sample(4, steps=2, guidance=3.0, guide=weak)
    lerped = strong.process.denoiser(None, 3.0, weak.process)
    assert not torch.equal(drawn, strong.sample(4, steps=2))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor(0.5)
    a, b = strong.process.denoiser()(x, t).x0, weak.process.denoiser()(x, t).x0
    torch.testing.assert_close(lerped(x, t).x0, b + 3 * (a - b), rtol=1e-4, atol=1e-5)
    for off in (None, 1.0):
        with pytest.raises(ValueError, match="pass guidance="):
            strong.sample(4, steps=2, guide=weak, guidance=off)


@pytest.mark.parametrize(
    ("run", "keys"),
    [
        ("circles", {"valid", "overlap", "energy_distance", "energy_distance_floor"}),
        ("points", {"energy_distance", "energy_distance_floor", "sliced_wasserstein", "sliced_wasserstein_floor"}),
        ("digits", {"frechet", "accuracy", "accuracy_real", "accuracy_by_label", "memorisation_ratio"}),
    ],
)
def test_eval_says_all_that_decides_its_figures(here, capsys, run, keys):
    words = ("eval", run, "--n", 100, "--steps", 2, "--seed", 3, "--json")
    status, out, _ = call(capsys, *words)
    figures = json.loads(out)
    assert status == 0
    assert keys | {"n", "seed", "solver", "steps", "evaluations", "run_step"} <= set(figures)
    assert (figures["n"], figures["seed"], figures["evaluations"], figures["run_step"]) == (100, 3, 3, 4)
    assert call(capsys, *words)[1] == out
    assert call(capsys, *words[:-1])[1].startswith(next(iter(figures)))


def test_dry_run_costs_nothing_and_says_what_would(in_tmp, capsys):
    status, out, _ = call(capsys, "train", "circles", "--dry-run", "--json")
    costs = json.loads(out)
    assert status == 0
    assert (costs["parameters"], costs["multiply_accumulates"], costs["steps"]) == (252_496, 2_393_088, 4000)
    assert 1e7 < costs["memory_bytes"] < 1e9
    assert not list(in_tmp.iterdir())


def test_the_networks_and_processes_swap_by_a_word(in_tmp, capsys):
    for i, words in enumerate(
        (
            ["circles", "--network", "unet", "--network.width", "8"],
            ["circles", "--network=mlp", "--network.hidden", "16"],
            ["digits", "--process", "ddpm", "--process.target", "v", "--optimizer", "adamw", *SMALL],
            ["points", "--process", "ddpm", "--process.schedule", "cosine"],
            ["circles", "--network.qk-norm", "--network.norm", "rms", "--network.mlp", "swiglu", "--network.rotary"],
        )
    ):
        common = ["--steps", "2", "--name", f"r{i}", "--sampling.steps", "2", "--batch-size", "4"]
        assert call(capsys, "train", *words, *common)[0] == 0
        assert call(capsys, "sample", f"r{i}", "--n", 2, "--out", "x.npz")[0] == 0


WRONG = [
    (["trane"], "did you mean 'ditlab train'"),
    (["train", "cirles"], "did you mean 'circles'"),
    (["train", "zebra"], "circles, points, digits"),
    (["train", "circles", "--stepz", "3"], "--steps"),
    (["train", "circles", "--steps", "-1"], "steps=-1"),
    (["train", "circles", "--steps", "many"], "--steps"),
    (["train", "circles", "--lr", "nan"], "lr=nan"),
    (["train", "circles", "--lr", "inf"], "lr=inf"),
    (["train", "circles", "--network", "rnn"], "dit, unet, mlp"),
    (["train", "circles", "--network", "unet", "--network.multipliers", "0"], "network.multipliers.0=0"),
    (["train", "circles", "--process", "ddpm", "--process.steps", "5"], "at least 21"),
    (["train", "--json"], "recipe comes before"),
    (["train", "circles", "--network.patch-size", "5"], "divides 16"),
    (["train", "circles", "--network.heads", "5"], "heads=5"),
    (["train", "circles", "--network.conditioning", "flim"], "adaln-zero, adaln, film, in-context, cross-attention"),
    (["train", "digits", "--network.no-null-label"], "condition_dropout 0"),
    (["train", "circles", "--network.patch-size", "5", "--dry-run"], "divides 16"),
    (["train", "circles", "--process.target", "v"], "process.target"),
    (["train", "points", "--network", "dit"], "--network mlp"),
    (["train", "points", "--data.name", "moon"], "moons"),
    (["train", "circles", "--process", "ddpm", "--process.steps", "30", "--sampling.steps", "40"], "at most 30"),
    (["train", "circles", "--process", "ddpm", "--sampling.shift", "2"], "grid='uniform'"),
    (["train", "digits", "--sampling.guidance-interval", "0.8", "0.2"], "below the second"),
    (["train", "circles", "--sampling.guidance-interval", "0.8", "1.2"], "guidance_interval.1=1.2"),
    (["train", "circles", "--name", "../up"], "folder's name"),
    (["train", "circles", "--device", "tpu"], "tpu"),
    (["train", "--resume", "runs/nowhere"], "ditlab demo"),
    (["train", "--resume", "runs/nowhere", "--lr", "1"], "--lr"),
    (["sample", "nowhere"], "no run at nowhere"),
    (["eval", "nowhere"], "no run at nowhere"),
    (["sample"], "RUN"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda w: " ".join(w) if isinstance(w, list) else None)
def test_wrong_input_gets_a_short_message_and_leaves_nothing(unchecked, in_tmp, capsys, words, message):
    status, out, err = call(capsys, *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 12
    assert not out
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "digits", "--label", "10"], "from 0 to 9"),
        (["sample", "digits", "--label", "-1"], "from 0 to 9"),
        (["sample", "circles", "--label", "1"], "trained without conditions"),
        (["sample", "circles", "--guidance", "2"], "--guide RUN"),
        (["sample", "circles", "--guide", "circles"], "add --guidance 2"),
        (["sample", "circles", "--guide", "nowhere", "--guidance", "2"], "no run at nowhere"),
        (["sample", "circles", "--guide", "circles", "--guidance", "2"], "--guide-step"),
        (["sample", "digits", "--guide-step", "2"], "add --guide RUN"),
        (["sample", "circles", "--guidance-rescale", "0.5"], "add --guidance 2"),
        (["sample", "digits", "--guidance", "1", "--guidance-channels", "1"], "add --guidance 2"),
        (["sample", "digits", "--guidance", "2", "--guidance-channels", "2", "--steps", "1"], "there are only 1"),
        (["sample", "digits", "--guidance-interval", "0.8", "0.2"], "the first time must be below the second"),
        (["sample", "circles", "--guide", "digits", "--guidance", "2"], "choose a run of the same data"),
        (["sample", "circles", "--grid", "leading"], "choose 'uniform'"),
        (["sample", "circles", "--grid", "even"], "karras"),
        (["sample", "circles", "--shift", "0"], "shift=0"),
        (["sample", "digits", "--guidance-rescale", "2"], "guidance_rescale=2"),
        (["sample", "circles", "--guidance", "nan"], "guidance=nan"),
        (["sample", "circles", "--out", "x.gif"], ".png"),
        (["sample", "circles", "--out", "x"], ".npz"),
        (["sample", "circles", "--n", "0"], "n=0"),
        (["sample", "circles", "--steps", "0"], "steps=0"),
        (["sample", "circles", "--solver", "rk"], "heun"),
        (["eval", "digits", "--n", "20"], "at least 100"),
        (["train", "circles"], "train --resume"),
        (["train", "--resume", "circles", "--steps", "2"], "behind it"),
        (["train", "--resume", "circles", "--batch-size", "2"], "--batch-size"),
    ],
)
def test_wrong_input_to_a_run(unchecked, here, capsys, words, message):
    before = sorted((str(p), p.stat().st_mtime_ns) for p in here.rglob("*"))
    status, out, err = call(capsys, *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert sorted((str(p), p.stat().st_mtime_ns) for p in here.rglob("*")) == before


def test_folder_that_is_not_there(here, capsys):
    status, _, err = call(capsys, "sample", "circles", "--n", 1, "--steps", 1, "--out", "/proc/nowhere/x.png")
    assert status == 2
    assert "/proc/nowhere" in err


def test_full_disk(runs):
    """A file that cannot grow: one line, status 1, nothing half-written, and the last good checkpoint stays."""

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = spawn(runs, "sample", "circles", "--n", "500", "--steps", "1", "--out", "big.npz", preexec_fn=small_disk)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "disk is full" in err
    assert "Traceback" not in err
    assert not [p for p in runs.iterdir() if "big" in p.name]

    process = spawn(runs, "train", "--resume", "circles", "--steps", "9", preexec_fn=small_disk)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "disk is full" in err
    assert "Traceback" not in err
    checkpoints = sorted(p.name for p in (runs / "runs/circles/checkpoints").iterdir())
    assert checkpoints == ["LATEST", "step-00000002", "step-00000004"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(in_tmp, number, status):
    process = spawn(in_tmp, "train", "circles", *SMALL, "--preview-every", "100000")
    metrics = in_tmp / "runs/circles/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "go on with: ditlab train --resume runs/circles" in err
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        return  # it goes on as after Ctrl-C
    step = int((in_tmp / "runs/circles/checkpoints/LATEST").read_text().strip().removeprefix("step-"))
    process = spawn(in_tmp, "train", "--resume", "runs/circles", "--steps", str(step + 2))
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.mark.slow
def test_compiled_training(in_tmp):
    process = spawn(in_tmp, "train", "circles", "--steps", "6", *SMALL, "--compile", "--precision", "bf16")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert spawn(in_tmp, "sample", "circles", "--n", "2", "--steps", "2").wait(timeout=120) == 0


def test_json_is_one_object_on_stdout(in_tmp):
    process = spawn(in_tmp, "train", "circles", "--steps", "3", *SMALL, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["step"] == 3
    assert "step 3/3" in err


def test_demo_measures_a_finished_run_anew(in_tmp, capsys, monkeypatch):
    """The whole of `ditlab demo`, with the recipe made small: train, picture, figures; again: no training."""
    from ditlab import recipes
    from tests.training.test_fit import tiny

    small = tiny("circles")
    monkeypatch.setitem(recipes.RECIPES.parts, "circles", lambda: small)
    status, out, err = call(capsys, "demo", "--json")
    first = json.loads(out)
    assert status == 0
    assert Image.open("runs/demo/samples.png").size[0] > 300
    assert "runs/demo/samples.png" in err
    assert "Next:" in err
    status, out, err = call(capsys, "demo", "--json")
    assert (status, json.loads(out)) == (0, first)
    assert "--fresh" in err
    assert call(capsys, "demo", "--fresh")[0] == 0


def test_help_of_every_verb_has_defaults(capsys):
    for words, expected in (
        (["train", "circles"], "default: 4000"),
        (["train", "circles", "--network", "unet"], "--network.width"),
        (["sample"], "default: 64"),
        (["eval"], "default: 1000"),
        (["demo"], "--fresh"),
    ):
        status, out, _ = call(capsys, *words, "--help")
        assert status == 0
        assert expected in out
    assert "--resume" in call(capsys, "train", "--help")[1]
    assert call(capsys)[0] == 0
    assert call(capsys, "--version")[1].startswith("ditlab ")
