"""Faults that befall what was saved: they are found, named, and an older checkpoint is used."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

import ditlab
from ditlab.cli.main import main
from ditlab.core.errors import CheckpointWarning, InputError
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import FILES, LATEST, MANIFEST, saved_steps, step_name
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loop import TrainState
from ditlab.training.resume import load_checkpoint
from tests.reliability.faults import tree
from tests.training.test_fit import Nobody, tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run")
    fit(tiny("digits", checkpoint_every=2, preview_every=6), RunFolder(folder / "r"), watcher=Nobody())
    return folder / "r"


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "r")
    return tmp_path / "r"


def flip(file, chance):
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def truncate(file, chance):
    os.truncate(file, chance.randrange(file.stat().st_size))


def grow(file, chance):
    file.write_bytes(file.read_bytes() + bytes([chance.randrange(256)]))


def zero(file, chance):
    """What some file systems leave after the power failed: the right size, and nothing in it."""
    file.write_bytes(bytes(file.stat().st_size))


def delete(file, chance):
    file.unlink()


def folder_instead(file, chance):
    file.unlink()
    file.mkdir()


HARMS = [flip, flip, flip, truncate, truncate, grow, zero, delete, folder_instead]


@pytest.mark.parametrize("name", [*FILES, "averages.safetensors", MANIFEST])
def test_truncated_flipped_and_deleted_bytes(runs, run, name):
    """At random places of every file: it is said which file of which step, and an older checkpoint is used."""
    chance = random.Random(name)
    named = ".*" if name == MANIFEST else name  # which can be wrong about any of them
    expected = ditlab.load(runs, step=4).process.network.state_dict()
    for harm in HARMS:
        file = run / f"checkpoints/step-00000006/{name}"
        harm(file, chance)
        with pytest.warns(CheckpointWarning, match=rf"step-00000006/{named} .*: step 4 is used instead") as said:
            loaded = ditlab.load(run)
        assert len(said) == 1
        assert loaded.step == 4
        own = loaded.process.network.state_dict()
        assert all(torch.equal(own[key], expected[key]) for key in expected)
        with pytest.raises(InputError, match=rf"step-00000006/{named} .*use an older checkpoint"):
            ditlab.load(run, step=6)
        shutil.rmtree(run)
        shutil.copytree(runs, run)


def test_a_checkpoint_that_is_gone(run):
    shutil.rmtree(run / "checkpoints/step-00000006")
    with pytest.warns(CheckpointWarning, match="names step-00000006, which is not there: step 4 is used instead"):
        assert ditlab.load(run).step == 4


def test_a_checkpoint_of_another_step(run):
    """Whole in itself, and not what its name says."""
    shutil.rmtree(run / "checkpoints/step-00000006")
    shutil.copytree(run / "checkpoints/step-00000002", run / "checkpoints/step-00000006")
    with pytest.warns(CheckpointWarning, match="it is of step 2"):
        assert ditlab.load(run).step == 4


def test_several_are_damaged(run, capsys):
    for step in (4, 6):
        truncate(run / f"checkpoints/{step_name(step)}/model.safetensors", random.Random(step))
    assert main(["sample", str(run), "--n", "2", "--steps", "1", "--out", str(run / "x.png")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert line.startswith(f"ditlab: {run}/checkpoints/step-00000006/model.safetensors is damaged")
    assert "step-00000004/model.safetensors is damaged" in line
    assert line.endswith("step 2 is used instead")


def test_training_goes_on_from_the_newest_whole_one(runs, run):
    """And ends with the bytes of a run that nothing happened to; what was damaged is set aside, and written again."""
    whole = tree(runs)
    for step in (4, 6):
        flip(run / f"checkpoints/{step_name(step)}/ema.safetensors", random.Random(step))
    with pytest.warns(CheckpointWarning, match="step 2 is used instead"):
        fit(RunFolder(run).read_config(), RunFolder(run), watcher=Nobody(), resume=True)
    now = tree(run)
    aside = {name for name in now if "damaged-" in name}
    assert {Path(name).parts[1] for name in aside} == {"damaged-step-00000004", "damaged-step-00000006"}
    assert now.keys() - aside == whole.keys()
    for name in whole:
        assert now[name] == whole[name] or name == "metrics.jsonl", name


def test_checkpoints_that_are_elsewhere(run, tmp_path):
    """A run whose checkpoints were moved, or lie on a disk that is not there now, is not begun anew."""
    folder, before = RunFolder(run), tree(run)
    shutil.move(folder.checkpoints, tmp_path / "elsewhere")
    for told in ("bring them back, or remove", "checkpoints is a link"):
        with pytest.raises(InputError, match=told):
            fit(folder.read_config(), folder, watcher=Nobody(), resume=True)
        folder.checkpoints.unlink(missing_ok=True)
        folder.checkpoints.symlink_to(tmp_path / "nowhere")
    folder.checkpoints.unlink()
    shutil.move(tmp_path / "elsewhere", folder.checkpoints)
    assert tree(run) == before


def test_a_kill_before_latest_is_moved_costs_nothing(run):
    """The newest whole checkpoint is gone on from, whatever LATEST says."""
    folder = RunFolder(run)
    (folder.checkpoints / "LATEST").write_text("step-00000004")
    before = (folder.checkpoints / "step-00000006/ema.safetensors").stat().st_ino
    assert fit(folder.read_config(), folder, watcher=Nobody(), resume=True).step == 6
    assert (folder.checkpoints / "step-00000006/ema.safetensors").stat().st_ino == before
    assert folder.step == 6


def test_metrics_damaged_by_a_power_cut(run):
    """What is unreadable at their end is left out; in the middle it is named."""
    folder = RunFolder(run)
    good = folder.read_metrics()
    with folder.metrics_file.open("ab") as stream:
        stream.write(bytes(50) + b"\n" + bytes(20) + b"\n")
    assert folder.read_metrics() == good
    with folder.metrics_file.open("a") as stream:
        stream.write(json.dumps(good[-1]) + "\n")
    with pytest.raises(InputError, match="is damaged: delete that line"):
        folder.read_metrics()


def test_none_is_whole(run, capsys):
    """Training is not begun anew, and nothing is touched."""
    for step in (2, 4, 6):
        truncate(run / f"checkpoints/{step_name(step)}/optimizer.safetensors", random.Random(step))
    before = tree(run)
    for words in (["train", "--resume", str(run), "--steps", "8"], ["train", "--resume", str(run)], ["eval", str(run)]):
        assert main(words) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith(f"ditlab: no checkpoint in {run}/checkpoints can be used: ")
        assert all(f"step-0000000{step}/optimizer.safetensors is damaged" in err for step in (2, 4, 6))
        assert tree(run) == before


def test_all_are_gone_but_not_forgotten(run):
    for step in (2, 4, 6):
        shutil.rmtree(run / f"checkpoints/{step_name(step)}")
    before = tree(run)
    with pytest.raises(InputError, match="LATEST names step-00000006, and no checkpoint is there"):
        fit(tiny("digits"), RunFolder(run), watcher=Nobody(), resume=True)
    assert tree(run) == before


def test_the_lab_walks_back_too(run):
    from ditlab.lab.server.library import Library

    truncate(run / "checkpoints/step-00000006/ema.safetensors", random.Random(0))
    library = Library(run)
    name = next(iter(library.folders()))
    with pytest.warns(CheckpointWarning, match="step 4 is used instead"):
        lens = library.lens(name)
    assert lens.run.step == 4
    assert library.lens(name) is lens  # and says so once


def test_clock_going_backwards(run, monkeypatch):
    """Steps decide what is newest, whatever the clock said when it was written."""
    for age, step in enumerate((6, 4, 2)):
        for path in (run / f"checkpoints/{step_name(step)}", run / f"checkpoints/{step_name(step)}/state.json"):
            os.utime(path, (10**9 + age, 10**9 + age))
    (run / "checkpoints" / LATEST).unlink()
    assert ditlab.load(run).step == 6
    ticks = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    config = RunFolder(run).read_config().model_copy(update={"steps": 9, "checkpoint_every": 1, "keep_last": 2})
    fit(config, RunFolder(run), watcher=Nobody(), resume=True)
    assert saved_steps(run / "checkpoints") == [8, 9]
    assert ditlab.load(run).step == 9


def test_readers_while_checkpoints_are_deleted(run):
    """Someone trains and keeps one checkpoint: whoever loads meanwhile gets a newer one, and never half of one."""
    config = RunFolder(run).read_config().model_copy(update={"steps": 40, "checkpoint_every": 1, "keep_last": 1})
    seen = []

    class Reader(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            seen.append(ditlab.load(run).step)

    fit(config.model_copy(update={"log_every": 1}), RunFolder(run), watcher=Reader(), resume=True)
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    with pytest.raises(InputError, match=r"no checkpoint of step 20 in .*; there are \[40\]"):
        ditlab.load(run, step=20)


def test_a_checkpoint_deleted_while_it_is_read(run, monkeypatch):
    """The next one is taken, though it was not there when the reader began."""
    from ditlab.runs import checkpoint

    read = checkpoint.disk.read_json
    files = run / "checkpoints"

    def slowly(path, within=None):
        value = read(path, within)
        if (files / "step-00000006").exists() and path.name == MANIFEST:
            (files / "step-00000006").rename(files / ".gone")
            state = TrainState(tiny("digits"), build_dataset(tiny("digits")))
            load_checkpoint(files, state, 4)
            state.step = 8
            with CheckpointWriter(files, state) as writer:
                writer.save()
        return value

    monkeypatch.setattr(checkpoint.disk, "read_json", slowly)
    assert ditlab.load(run).step == 8


def test_a_state_says_what_it_was(runs):
    said = json.loads((runs / "checkpoints/step-00000006/state.json").read_text())
    assert said["step"] == 6
    assert said["torch"] == torch.__version__
    assert said["network"]["heads"] == 2
