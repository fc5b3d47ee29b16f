"""``ditlab ema`` as it is typed, and what the other verbs make of the runs that it leaves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ditlab.cli.main import main
from ditlab.lab import Lens
from tests.reliability.faults import tree

SMALL = [
    "--batch-size",
    "4",
    "--network.dim",
    "8",
    "--network.depth",
    "1",
    "--network.heads",
    "2",
    "--precision",
    "fp32",
]
SMALL += ["--preview-every", "100", "--record-every", "100", "--sampling.steps", "1", "--steps", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "circles", *SMALL, "--average-every", "2", "--checkpoint-every", "4"]) == 0
    return folder


@pytest.fixture
def run(trained, in_tmp):
    shutil.copytree(trained / "runs", "runs")


def test_several_widths_at_once(run, capfd):
    assert main(["ema", "circles", "--sigma-rel", "0.07", "0.2", "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert {name: told[name] for name in ("run", "step", "snapshots")} == {"run": "circles", "step": 8, "snapshots": 4}
    assert [average["sigma_rel"] for average in told["averages"]] == [0.07, 0.2]
    assert [average["out"] for average in told["averages"]] == ["runs/circles-ema-0.07", "runs/circles-ema-0.2"]
    assert all(0 < average["expected_error"] < 0.05 for average in told["averages"])
    assert "Next: ditlab eval runs/circles-ema-0.07" in err
    assert main(["sample", "circles-ema-0.2", "--n", "2", "--out", "x.npz"]) == 0
    assert np.isfinite(np.load("x.npz")["samples"]).all()
    assert Lens("runs/circles-ema-0.2").run.step == 8


def test_an_earlier_step_without_its_checkpoint(run, capfd):
    assert main(["ema", "circles", "--sigma-rel", "0.1", "--step", "6"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].split() == ["run", "circles"]
    assert "out: runs/circles-ema-0.1-step-00000006" in out
    assert "note: step 6 has no checkpoint, so --weights raw gives the average too" in err


def test_a_tracked_average_by_its_width(run):
    samples = {}
    for weights in ("ema", "raw", "0.1", "0.05"):
        assert main(["sample", "circles", "--n", "2", "--weights", weights, "--out", f"{weights}.npz"]) == 0
        samples[weights] = np.load(f"{weights}.npz")["samples"].tobytes()
    assert len(set(samples.values())) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ema", "circles", "--sigma-rel", "0.3"], "sigma_rel.0=0.3: should be less than or equal to 0.28"),
        (["ema", "circles", "--sigma-rel", "0.001"], "should be greater than or equal to 0.01"),
        (["ema", "circles", "--sigma-rel", "nan"], "should be a finite number"),
        (["ema", "circles", "--sigma-rel"], "names no width"),
        (
            ["ema", "circles", "--sigma-rel", "0.1", "--step", "5"],
            "no snapshot of step 5; of those that it has 2, 4, 6",
        ),
        (["ema", "circles", "--sigma-rel", "0.1", "0.2", "--out", "x"], "leave it out"),
        (["ema", "circles", "--sigma-rel", "0.1", "--out", "runs/circles"], "choose another --out"),
        (["ema", "nowhere", "--sigma-rel", "0.1"], "no run at nowhere"),
        (["sample", "circles", "--weights", "0.15"], "ditlab ema runs/circles --sigma-rel 0.15"),
        (["train", "circles", "--name", "x", "--averages", "0.1", "0.1"], "each width once"),
    ],
)
def test_wrong_input_ends_in_one_line(run, capfd, words, said):
    before = tree(".")
    assert main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("ditlab: ")
    assert said in line
    assert tree(".") == before


def test_averages_can_be_off(in_tmp, capfd):
    assert main(["train", "circles", *SMALL, "--averages"]) == 0
    assert not Path("runs/circles/averages").exists()
    capfd.readouterr()
    assert main(["ema", "circles", "--sigma-rel", "0.1"]) == 2
    assert "no snapshots of averages to make others from" in capfd.readouterr().err
