"""Evaluation within training: it is that of ``ditlab eval``, and training does not feel it."""

import json

import pytest

import ditlab
from ditlab.core.errors import ConfigError
from ditlab.evaluation.evaluate import evaluate
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.tracking import flat
from tests.training.test_fit import Nobody, tiny


def lines(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", ["circles", "digits"])
def test_figures_on_the_way_are_those_afterwards(tmp_path, recipe):
    folder = RunFolder(tmp_path / "run")
    fit(tiny(recipe, eval_every=4, eval_n=120), folder, watcher=Nobody())
    told = [line for line in lines(folder) if "eval" in line]
    assert [line["step"] for line in told] == [4, 6]
    run = ditlab.load(folder.path)
    after = evaluate(run, 120, **run.config.sampling.model_dump())
    found = told[-1]["eval"]
    assert {"frechet", "frechet_interval", "kernel", "features_digest"} <= set(found)
    assert found == {name: after[name] for name in found}
    assert found["frechet"] != told[0]["eval"]["frechet"]
    assert flat(told[-1])["eval/frechet"] == found["frechet"]


def test_training_does_not_feel_it(tmp_path):
    """Checkpoints are alike to the last byte, with and without."""
    config = tiny("digits", eval_every=2, eval_n=100)
    fit(config, RunFolder(tmp_path / "with"), watcher=Nobody())
    fit(tiny("digits"), RunFolder(tmp_path / "without"), watcher=Nobody())
    for step in (3, 6):
        name = f"checkpoints/step-{step:08d}"
        for file in ("model", "ema", "optimizer", "averages"):
            a, b = (tmp_path / kind / name / f"{file}.safetensors" for kind in ("with", "without"))
            assert a.read_bytes() == b.read_bytes()


def test_a_resumed_run_tells_the_same_figures(tmp_path):
    config = tiny("digits", eval_every=2, eval_n=100)
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    fit(config, whole, watcher=Nobody())
    fit(config, cut, watcher=Nobody())
    (cut.checkpoints / "LATEST").write_text("step-00000003")
    for step in (6,):
        for file in (cut.checkpoints / f"step-{step:08d}").iterdir():
            file.unlink()
        (cut.checkpoints / f"step-{step:08d}").rmdir()
    fit(config, cut, watcher=Nobody(), resume=True)

    def figures(folder):
        return [(line["step"], line["eval"]) for line in lines(folder) if "eval" in line]

    assert figures(cut) == figures(whole)
    assert [step for step, _ in figures(whole)] == [2, 4, 6]


def test_too_few_digits_are_refused_at_once():
    with pytest.raises(ConfigError, match="eval_n=50"):
        tiny("digits", eval_every=2, eval_n=50)
