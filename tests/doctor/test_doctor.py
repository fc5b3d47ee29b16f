"""The doctor tells healthy runs from ill ones, each with its reason, and leaves them as they are."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ditlab.cli.main import main
from ditlab.config import AdamWConfig, Config, DDPMConfig, DiTConfig, ExternalData, ImagesData, UNetConfig
from ditlab.data import digits
from ditlab.data.digits import LabelledImages, digit_halves
from ditlab.doctor.reference import curves, reference_for
from ditlab.doctor.report import examine
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import thin_out
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.ema import EMA
from ditlab.training.loop import TrainState
from ditlab.training.make_ema import make_averages
from tests.training.test_fit import Nobody, tiny

STEPS = 240


def small(recipe="digits", **changes):
    """A recipe whose network is small, but learns."""
    network = DiTConfig(patch_size=4, dim=32, depth=2, heads=2)
    rare = {"preview_every": 10**6, "record_every": 40, "log_every": 10, "checkpoint_every": STEPS // 4}
    chosen = {"network": network, "steps": STEPS, "batch_size": 64, "warmup_steps": 20, **rare}
    return tiny(recipe, **{**chosen, **changes})


def trained(path, config):
    """A run whose metrics tell of an even speed: how fast it was is up to what else the machine does."""
    folder = RunFolder(path)
    fit(config, folder, watcher=Nobody())
    lines = [{**line, **({"images_per_s": 1000.0} if "loss" in line else {})} for line in folder.read_metrics()]
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def marks(report, *wanted):
    """The names of the checks with these marks."""
    return {check.name for check in report.checks if check.mark in wanted}


def check(report, name):
    return next(check for check in report.checks if check.name == name)


def shuffled_digits():
    """The digits of training, their labels shuffled."""
    images, labels = digit_halves()[0]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return LabelledImages(images, labels[order]), digit_halves()[1]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run on digits, with the checkpoints of four stages."""
    return trained(tmp_path_factory.mktemp("healthy") / "digits", small())


def stage(folder, step, to):
    """A run as it was at that step."""
    shutil.copytree(folder.path, to)
    copy = RunFolder(to)
    copy.cut(step)
    shutil.rmtree(copy.path / "checkpoints")
    for kept in sorted((folder.checkpoints).glob("step-*")):
        if int(kept.name[5:]) <= step:
            shutil.copytree(kept, copy.checkpoints / kept.name)
    return copy


@pytest.mark.parametrize("share", [1, 2, 4])
def test_a_healthy_run_is_healthy_at_every_stage(healthy, tmp_path, share):
    report = examine(stage(healthy, STEPS // 4 * share, tmp_path / "run").path)
    assert marks(report, "bad", "warning") == set()
    assert report.verdict == "healthy"
    assert {"averaged weights", "data", "skipped steps", "checkpoint"} <= marks(report, "ok")
    if share == 4:
        assert {"labels", "loss by time", "training curve", "gates", "memorisation"} <= marks(report, "ok")


@pytest.mark.parametrize(
    "changes",
    [
        {"process": DDPMConfig(target="v"), "seed": 1},
        pytest.param({"optimizer": AdamWConfig(), "seed": 2}, marks=pytest.mark.slow),
        pytest.param({"process": DDPMConfig(), "seed": 3}, marks=pytest.mark.slow),
        pytest.param({"recipe": "circles", "network": UNetConfig(width=8)}, marks=pytest.mark.slow),
    ],
    ids=["ddpm-v", "adamw", "ddpm", "unet"],
)
def test_other_processes_and_optimizers_raise_no_alarm(tmp_path, changes):
    """AdamW is slower: on so few steps it is told at most that it could do with more."""
    trained(tmp_path / "run", small(**changes))
    report = examine(tmp_path / "run")
    assert marks(report, "bad") == set()
    assert marks(report, "warning") <= ({"loss by time"} if "optimizer" in changes else set())


def test_a_learning_rate_100_times_too_high(tmp_path, capsys):
    recipe = RECIPES["digits"]()
    fit(small(lr=100 * recipe.lr), RunFolder(tmp_path / "run"), watcher=Nobody())
    found = check(examine(tmp_path / "run"), "loss by time")
    assert found.mark == "bad"
    assert f"100 × the recipe's: start a new run with --lr {recipe.lr:g}" in found.advice
    assert main(["doctor", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path / 'run'}, step {STEPS} of {STEPS}: ill: ")


def test_a_learning_rate_100_times_too_high_before_anything_was_saved(tmp_path):
    """Of a network that broke at once, the metrics tell enough."""
    folder = RunFolder(tmp_path / "run")
    folder.write_config(small("circles", lr=0.4))
    for line in ({"step": 20, "loss": 1.9}, {"step": 40, "loss": 300.0}, {"step": 60, "loss": 9e5}):
        folder.append_metrics({**line, "grad_norm": 1e7, "lr": 0.4, "images_per_s": 1.0, "seconds": 1.0})
    report = examine(folder.path)
    assert marks(report, "bad") == {"gradient norm"}
    assert "runs away" in check(report, "gradient norm").reason


def test_labels_that_were_shuffled_in_training(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(digits, "digit_halves", shuffled_digits)
        network = DiTConfig(patch_size=2, dim=32, depth=2, heads=2)
        fit(small(network=network), RunFolder(tmp_path / "run"), watcher=Nobody())
        still = examine(tmp_path / "run")
    assert "they look shuffled" in check(still, "labels").reason
    assert marks(still, "bad") == {"labels"}
    mended = examine(tmp_path / "run")  # the data have their own labels again
    assert "does not use these labels" in check(mended, "labels").reason
    assert marks(mended, "bad") == {"labels"}


def test_averaged_weights_that_never_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(EMA, "update", lambda self, step: None)
    fit(small(steps=60), RunFolder(tmp_path / "run"), watcher=Nobody())
    report = examine(tmp_path / "run")
    assert "averaged weights" in marks(report, "bad")
    found = check(report, "averaged weights")
    assert "never moved" in found.reason
    assert "--weights raw" in found.advice
    assert found.value["lag"] == pytest.approx(1)


def test_averaged_weights_that_stopped_halfway(tmp_path, monkeypatch):
    own = EMA.update
    monkeypatch.setattr(EMA, "update", lambda self, step: own(self, step) if step <= STEPS // 2 else None)
    folder = RunFolder(tmp_path / "run")
    fit(small(), folder, watcher=Nobody())
    found = check(examine(folder.path), "averaged weights")
    assert found.mark == "bad"
    assert f"have not moved since step {STEPS // 4 * 3}" in found.reason
    thin_out(folder.checkpoints, 1, None)  # nothing earlier is there to compare with
    found = check(examine(folder.path), "averaged weights")
    assert found.mark == "bad"
    assert "stopped moving" in found.reason


def test_a_data_set_of_one_image(tmp_path):
    (tmp_path / "one").mkdir()
    pixels = (digit_halves()[0].images[0, 0].numpy() * 127.5 + 127.5).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "one/a.png")
    data = ImagesData(path=str(tmp_path / "one"), image_size=(8,), channels=1)
    fit(small(data=data, batch_size=1, steps=60), RunFolder(tmp_path / "run"), watcher=Nobody())
    report = examine(tmp_path / "run", n=64)
    assert marks(report, "bad") == {"data"}
    assert check(report, "data").reason == "all samples are the same"
    assert check(report, "data").value["seen"] == 60


def test_an_average_that_was_made_afterwards_is_not_judged_as_the_runs_own(healthy, tmp_path):
    (made,) = make_averages(healthy.path, [0.25], out=tmp_path / "made")
    found = check(examine(made.folder.path, n=64), "averaged weights")
    assert found.mark == "unknown"
    assert "ditlab ema made them after training, an average of relative width 0.25" in found.reason


def test_a_training_that_hung_is_ill_until_it_has_gone_on(healthy, tmp_path):
    folder = stage(healthy, STEPS, tmp_path / "run")
    newest = folder.metrics_file.stat().st_mtime
    stacks = folder.path / "stalled-1.txt"  # of the second of several processes
    stacks.write_text("no step was finished")
    os.utime(stacks, (newest + 5, newest + 5))
    found = check(examine(folder.path, n=64), "interruptions")
    assert found.mark == "warning"
    assert str(stacks) in found.advice
    os.utime(folder.metrics_file, (newest + 9, newest + 9))
    found = check(examine(folder.path, n=64), "interruptions")
    assert found.mark == "ok"
    assert found.figure == f"it hung before, but continued since: {stacks}"


def test_a_run_in_training_is_neither_stopped_nor_changed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    seen = []

    def everything():
        return {str(p): p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}

    class Visits(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            if step == 60:
                before = everything()
                seen.append(examine(folder.path, n=64))
                assert everything() == before

    fit(small(steps=80, checkpoint_every=40), folder, watcher=Visits())
    assert [report.step for report in seen] == [60]
    assert check(seen[0], "checkpoint").value["checkpoint"] in (None, 40)  # it may be being written
    assert folder.step == 80


def test_a_damaged_checkpoint_is_told_and_the_one_before_examined(healthy, tmp_path):
    folder = stage(healthy, STEPS, tmp_path / "run")
    file = folder.checkpoints / f"step-{STEPS:08d}" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    report = examine(folder.path, n=64)
    found = check(report, "checkpoint")
    assert found.mark == "warning"
    assert "ema.safetensors is damaged" in found.reason
    assert found.value["checkpoint"] == STEPS // 4 * 3
    for step in (1, 2, 3):
        (folder.checkpoints / f"step-{STEPS // 4 * step:08d}/manifest.json").unlink()
    report = examine(folder.path, n=64)
    assert check(report, "checkpoint").mark == "bad"
    assert {"loss by time", "labels", "averaged weights"} <= marks(report, "unknown")


def test_what_cannot_be_known_is_said(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(small())
    report = examine(folder.path)
    assert report.verdict == "unknown"
    assert main(["doctor", str(folder.path)]) == 0
    assert "nothing can be said yet" in capsys.readouterr().out
    folder.write_config(small(data=ExternalData(shape=(4, 8, 8)), network=DiTConfig(dim=16, depth=1, heads=2)))
    report = examine(folder.path)
    assert "trained elsewhere" in check(report, "loss by time").reason
    assert report.verdict == "unknown"


def test_words_and_json(healthy, capsys):
    assert main(["doctor", str(healthy.path), "--json", "--n", "256"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["step"]) == ("healthy", STEPS)
    keys = {"name", "verdict", "value", "figure", "expected", "reason", "advice"}
    assert all(set(entry) == keys for entry in found["checks"])
    assert main(["doctor", str(healthy.path), "--n", "256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(": healthy")
    assert [line[2:].split("  ")[0] for line in lines if line[:1] in "✓·!✗?" and line] == [
        entry["name"] for entry in found["checks"]
    ]
    assert main(["doctor", "nowhere"]) == 2
    assert main(["doctor", str(healthy.path), "--n", "3"]) == 2


def test_the_reference_is_looked_up_where_the_recipe_was_as_far():
    config = RECIPES["circles"]()
    curve = curves()["circles"]
    assert curve["recipe"]["steps"] == config.steps
    at = curve["steps"].index(1000)
    assert reference_for(config, 1000).loss == curve["loss"][at]
    assert reference_for(config, 1000).like
    between = reference_for(config, 1125).loss
    assert between == pytest.approx([(a + b) / 2 for a, b in zip(*curve["loss"][at : at + 2], strict=True)])
    longer, shorter = (config.model_copy(update={"steps": steps}) for steps in (16000, 1000))
    assert reference_for(longer, 4000).step == 1000  # whose learning rate is as far
    assert reference_for(shorter, 1000).step == 1000  # which has seen as much
    assert reference_for(config.model_copy(update={"batch_size": 64}), 2000).step == 1000
    assert "too early" in reference_for(config, 10)
    assert "another process" in reference_for(config.model_copy(update={"process": DDPMConfig()}), 1000)
    assert not reference_for(config.model_copy(update={"optimizer": AdamWConfig()}), 1000).like


def test_measuring_one_recipe_leaves_the_curves_of_the_others(healthy, tmp_path, monkeypatch):
    script = Path(__file__).parents[2] / "benchmarks" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FILE", tmp_path / "reference.json")
    monkeypatch.setattr(sys, "argv", [str(script), str(healthy.path)])
    module.FILE.write_text(json.dumps({"circles": 1, "digits": 2}))
    module.main()
    told = json.loads(module.FILE.read_text())
    assert told["circles"] == 1
    assert told["digits"]["steps"] == [STEPS // 4 * i for i in (1, 2, 3, 4)]


def test_every_recipe_has_its_reference():
    names = {"circles", "digits"} | {f"points {name}" for name in ("gaussians", "moons", "swiss-roll")}
    assert names | {"points checkerboard", "points spirals"} == set(curves())
    for name in ("circles", "digits"):
        own = RECIPES[name]()
        assert type(own.process).model_validate(curves()[name]["process"]) == own.process
        assert curves()[name]["recipe"]["network"] == own.network.model_dump(mode="json")


def test_the_initial_weights_are_found_again():
    from ditlab.runs.build import initial_network

    config = small(seed=5)
    begun = TrainState(config, build_dataset(config)).network.state_dict()
    again = initial_network(config, build_dataset(config)).state_dict()
    other = initial_network(Config(**{**dict(config), "seed": 6}), build_dataset(config)).state_dict()
    assert all(torch.equal(begun[name], again[name]) for name in begun)
    assert not all(torch.equal(begun[name], other[name]) for name in begun)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("recipe", ["circles", "digits", "points"])
def test_the_recipes_themselves_are_where_their_reference_is(tmp_path, recipe, seed):
    config = RECIPES[recipe]().model_copy(update={"steps": 1000, "checkpoint_every": 250, "seed": seed})
    folder = trained(tmp_path / "run", config)
    for step in (250, 500, 1000):
        report = examine(stage(folder, step, tmp_path / f"at-{step}").path)
        assert marks(report, "bad", "warning") == set()
        assert check(report, "loss against the recipe's").value["ratio"] == pytest.approx(1, abs=0.06)


@pytest.mark.slow
def test_the_recipe_with_a_learning_rate_10_times_too_high_is_ill(tmp_path):
    config = RECIPES["circles"]().model_copy(update={"steps": 1000, "checkpoint_every": 500, "lr": 0.04})
    fit(config, RunFolder(tmp_path / "run"), watcher=Nobody())
    report = examine(tmp_path / "run")
    assert {"loss against the recipe's", "gates"} <= marks(report, "bad")
    assert "10 × the recipe's" in check(report, "loss against the recipe's").advice
