"""Each study runs from end to end at a tiny size, its verdicts can come out each way, and kept results are its own."""

import json
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from ditlab.errors import CheckpointWarning, InputError
from studies import intervals
from studies.__main__ import ORDER
from studies.intervals import CONFIRMED, CONTRADICTED, NOT_SHOWN, Measured
from studies.study import Outcome, main, perform
from studies.training import SMOKE, Workers, base

RESULTS = Path(__file__).parents[2] / "studies" / "results"
VERDICTS = {CONFIRMED, CONTRADICTED, NOT_SHOWN}
KEYS = ["study", "tier", "claim", "findings", "rows", "curves", "command", "machine", "seconds", "training_seconds"]
KEYS += ["steps", "seeds", "commit"]


def study(name):
    return import_module(f"studies.{name}").STUDY


def check(told):
    """What every result must be."""
    assert list(told) == KEYS
    assert told["claim"] == study(told["study"]).claim
    assert told["command"].startswith(f"python -m studies.{told['study']}")
    assert {"cpu", "cores", "processes", "threads_each", "torch"} <= set(told["machine"])
    assert told["findings"]
    assert told["rows"]
    assert all(list(row) == list(told["rows"][0]) for row in told["rows"])
    for finding in told["findings"]:
        assert list(finding) == ["claim", "measurement", "verdict", "reason", "figures"]
        assert finding["verdict"] in VERDICTS
        assert finding["claim"].endswith(".")
        assert finding["measurement"].endswith(".")
        assert finding["reason"]
        assert finding["figures"]
        for figure in finding["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["interval"].startswith(("t over", "bootstrap over", "exact"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the studies of these tests share their runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", ORDER)
def test_a_study_runs_from_end_to_end(name, runs, tmp_path):
    told = perform(study(name), SMOKE, Workers(runs, 0, lambda _: None), tmp_path)
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert kept == json.loads(json.dumps(told))
    check(kept)
    assert Image.open(tmp_path / f"{name}.png").size[0] >= 400
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json", f"{name}.png"]


@pytest.mark.parametrize("name", ORDER)
def test_a_study_opens_with_its_command_and_what_to_expect(name):
    text = import_module(f"studies.{name}").__doc__
    for words in (f"python -m studies.{name} ", f"python -m studies.{name} --full", "Claim:", "Expect:", "CPU cores"):
        assert words in text


@pytest.mark.parametrize("file", sorted(RESULTS.glob("full/*.json")), ids=lambda file: file.stem)
def test_kept_results_are_those_of_their_scripts(file):
    told = json.loads(file.read_text())
    check(told)
    assert told["study"] == file.stem
    assert told["tier"] == "full"
    assert told["command"] == f"python -m studies.{file.stem} --full"
    assert Image.open(file.with_suffix(".png")).size[0] >= 400


def test_a_study_that_fails_leaves_no_result(tmp_path):
    failing = study("counts")._replace(draw=lambda told: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        perform(failing, SMOKE, Workers(tmp_path, 1), tmp_path / "results")
    no_number = study("counts")._replace(measure=lambda tier, workers: Outcome([], [{"x": float("nan")}]))
    with pytest.raises((ValueError, KeyError)):
        perform(no_number, SMOKE, Workers(tmp_path, 1), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_unknown_studies_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main([study("counts"), study("counts")], ["spelling"])
    assert stop.value.code == 2
    assert "no study spelling; there are counts" in capsys.readouterr().err


# ---- verdicts


def test_verdicts_need_the_whole_interval():
    high, low, wide = Measured(3, 2, 4, ""), Measured(0, -1, 0.5, ""), Measured(1, 0, 2, "")
    assert [intervals.above(each, 1) for each in (high, low, wide)] == [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    assert [intervals.below(each, 1) for each in (high, low, wide)] == [CONTRADICTED, CONFIRMED, NOT_SHOWN]
    assert intervals.every([CONFIRMED, CONFIRMED]) == CONFIRMED
    assert intervals.every([CONFIRMED, NOT_SHOWN, CONTRADICTED]) == CONTRADICTED
    assert intervals.every([CONFIRMED, NOT_SHOWN]) == NOT_SHOWN
    assert intervals.every([]) == NOT_SHOWN


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    draws = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).tolist()
    held = [figure.low <= 0 <= figure.high for figure in map(intervals.over_seeds, draws)]
    assert 0.92 <= sum(held) / len(held) <= 0.98
    many = torch.randn(300, 60, generator=torch.Generator().manual_seed(1)).tolist()
    held = [figure.low <= 0 <= figure.high for figure in map(intervals.bootstrapped, many)]
    assert 0.9 <= sum(held) / len(held) <= 0.99


# ---- training


def scaled(factor, network):
    with torch.no_grad():
        network.positions.mul_(factor)


def test_changed_starts_are_trained_from_and_kept(tmp_path):
    config = base(SMOKE, 0, steps=4)
    runs = Workers(tmp_path, 2, lambda _: None).train(
        {"plain": config, "changed": config}, {"changed": partial(scaled, 100.0)}
    )
    plain, changed = (run.load() for run in runs.values())
    assert changed.process.network.positions.std() > 10 * plain.process.network.positions.std()
    assert changed.step == plain.step == 4
    here = Workers(tmp_path, 0, lambda _: None)
    assert here.train({"plain": config})["plain"] == runs["plain"]
    with pytest.raises(InputError, match="was trained with other settings: remove it"):
        here.train({"plain": base(SMOKE, 0, steps=4, lr=1e-3)})


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(tmp_path):
    config = base(SMOKE, 0, steps=8)
    here = Workers(tmp_path, 0, lambda _: None)
    whole = here.train({"whole": config})["whole"].load()
    (tmp_path / "cut").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "cut" / "checkpoints")
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000008")
    with pytest.warns(CheckpointWarning, match="step 6 is used instead"):
        again = here.train({"cut": config})["cut"].load()
    for one, other in zip(whole.process.parameters(), again.process.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_that_runs_away_is_told_of_and_not_hidden(tmp_path):
    config = base(SMOKE, 0, lr=1e3, grad_clip=1e9, warmup_steps=0, bad_steps=1)
    (run,) = Workers(tmp_path, 0, lambda _: None).train({"wild": config}).values()
    assert "could not be learned from" in run.failed
