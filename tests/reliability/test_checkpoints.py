"""Faults of the disk: whatever stops a save, and whatever happens to a saved one, a whole checkpoint is found."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import ditlab
from ditlab import disk
from ditlab.build import build_dataset
from ditlab.cli.main import main
from ditlab.errors import CheckpointWarning, InputError
from ditlab.fit import fit
from ditlab.run import RunFolder
from ditlab.training.checkpoint import FILES, LATEST, MANIFEST, load_checkpoint, saved_steps, step_name, verified
from ditlab.training.loop import TrainState, train
from ditlab.training.writer import CheckpointWriter
from tests.reliability.faults import At, die, full, in_a_child, recorded, torn, tree, vanish
from tests.training.test_fit import Nobody, tiny

SMALL = ["--batch-size", "4", "--network.dim", "8", "--network.depth", "1", "--network.heads", "2"]
SMALL += ["--sampling.steps", "1", "--preview-every", "100", "--precision", "fp32", "--log-every", "2"]


OPERATIONS = 21  # on the disk in a save that deletes one checkpoint


def stepped(steps, **changes):
    """A state after some steps."""
    config = tiny(steps=8, keep_last=2, **changes)
    state, data = TrainState(config, build_dataset(config)), build_dataset(config)
    loop = train(state, data)
    for _ in range(steps):
        next(loop)
    return state, loop


def save(folder, state):
    with CheckpointWriter(folder, state) as writer:
        writer.save()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2, and the state at step 3: its save will delete the first."""
    folder = tmp_path_factory.mktemp("saved")
    state, loop = stepped(1)
    save(folder, state)
    next(loop)
    save(folder, state)
    next(loop)
    return folder, state


@pytest.fixture
def checkpoints(saved, tmp_path):
    """A copy of that folder to do harm to, and the state."""
    shutil.copytree(saved[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints", saved[1]


def look(folder, before):
    """After a save was stopped: every checkpoint that is listed is whole, and those of before have their bytes."""
    steps = saved_steps(folder)
    assert steps in ([1, 2], [1, 2, 3], [2, 3])
    for step in steps:
        verified(folder, step)
    now = tree(folder)
    for name, content in before.items():
        if name.startswith("step-00000002") or (1 in steps and name != LATEST):
            assert now[name] == content, name
    assert now[LATEST].strip() in (b"step-00000002", b"step-00000003")
    assert RunFolder(folder.parent).whole_step in steps
    return [name for name in now if name.startswith(".")]


def test_the_operations_of_a_save(checkpoints, monkeypatch):
    """What the tests below stop: every file is written and flushed, then its folder, then what names it."""
    folder, state = checkpoints
    seen = recorded(monkeypatch, lambda: save(folder, state))
    new, gone = (f".{step_name(step)}.{os.getpid()}.tmp" for step in (3, 1))
    files = [*FILES, MANIFEST]
    assert len(seen) == OPERATIONS
    assert seen == [
        ("fsync", "checkpoints"),
        *[("write", name) for name in files],
        *[("fsync", name) for name in sorted(files)],
        ("fsync", new),
        ("rename", "step-00000003"),
        ("fsync", "checkpoints"),
        ("write", f".LATEST.{os.getpid()}.tmp"),
        ("fsync", f".LATEST.{os.getpid()}.tmp"),
        ("rename", "LATEST"),
        ("fsync", "checkpoints"),
        ("rename", gone),
        ("fsync", "checkpoints"),
        ("delete", gone),
    ]


@pytest.mark.parametrize("n", range(OPERATIONS))
def test_a_fault_in_a_checkpoint(checkpoints, monkeypatch, n):
    """An error before each write, fsync, rename and delete in turn: it is raised, nothing is left over, and the next
    save works."""
    folder, state = checkpoints
    before = tree(folder)

    def fault(operation, path):
        torn(operation, path)
        raise ZeroDivisionError

    monkeypatch.setattr(disk, "before", At(n, fault))
    writer = CheckpointWriter(folder, state)
    writer.save()
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    left = look(folder, before)
    assert not left or n >= 19, left  # of a deletion that was stopped
    writer.save()
    writer.wait()
    assert saved_steps(folder) == [2, 3]
    assert (folder / LATEST).read_text().strip() == "step-00000003"
    verified(folder, 3)


@pytest.mark.parametrize("how", [die, vanish])
def test_kill_9_in_a_checkpoint(checkpoints, tmp_path, how):
    """A process that dies before each write, fsync, rename and delete in turn, or half way through it."""
    folder, state = checkpoints
    before = tree(folder)
    names = set()
    for n in range(OPERATIONS):
        shutil.rmtree(folder)
        for name, content in before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        def action(n=n):
            disk.before = At(n, how)
            save(folder, state)

        assert in_a_child(action) == (-signal.SIGKILL if how is die else 9)
        names |= {name.split("/")[0].split(".")[1] for name in look(folder, before)}
        save(folder, state)
        assert saved_steps(folder) == [2, 3]
        RunFolder(tmp_path).cut(3)
        assert not [name for name in tree(folder) if name.startswith(".")]
        assert (folder / LATEST).read_text().strip() == "step-00000003"
    assert names == {"step-00000001", "step-00000003", "LATEST"}  # the faults did leave things to sweep


def test_a_sweep_can_be_stopped_too(checkpoints, tmp_path):
    """Going back to an older checkpoint, stopped before each operation: that one stays whole, and LATEST is true."""
    folder, state = checkpoints
    save(folder, state)
    (folder / ".step-00000009.7.tmp").mkdir()
    (folder / ".step-00000009.7.tmp/model.safetensors").write_bytes(b"half")
    before = tree(folder)
    for n in range(20):
        shutil.rmtree(folder)
        for name, content in before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        def action(n=n):
            disk.before = At(n, die)
            RunFolder(tmp_path).cut(2)

        ended = in_a_child(action)
        assert verified(folder, 2)
        assert RunFolder(tmp_path).step in saved_steps(folder)
        RunFolder(tmp_path).cut(2)
        assert saved_steps(folder) == [2]
        assert (folder / LATEST).read_text().strip() == "step-00000002"
        assert not [name for name in tree(folder) if name.startswith(".")]
        if ended == 0:
            break
    assert 8 < n < 20


@pytest.mark.parametrize("n", range(7))
def test_disk_full_at_every_write(checkpoints, monkeypatch, n):
    folder, state = checkpoints
    before = tree(folder)
    fault = At(n, full, only="write")
    monkeypatch.setattr(disk, "before", fault)
    with pytest.raises(OSError, match="No space left") if n < 6 else pytest.MonkeyPatch.context():
        save(folder, state)
    assert fault.count == min(n + 1, 6)
    assert not look(folder, before)
    if n < 5:
        assert tree(folder) == before


def test_disk_full(checkpoints):
    """Files that cannot grow beyond a size: of each file that is too large, nothing is left."""
    folder, state = checkpoints
    before = tree(folder)
    sizes = sorted({len(content) for name, content in before.items() if name.startswith("step-00000002")})
    for limit in [5, 60, *[size - 1 for size in sizes]]:

        def action(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                save(folder, state)
            except OSError as error:
                os._exit(42 if error.errno in (errno.EFBIG, errno.ENOSPC) else 1)

        assert in_a_child(action) == 42, limit
        assert tree(folder) == before


def test_disk_full_is_said_in_one_line(in_tmp, monkeypatch, capfd):
    """At each write of a run that goes on: configuration, metrics, checkpoints, recordings, pictures."""
    assert main(["train", "circles", "--steps", "2", "--checkpoint-every", "2", *SMALL]) == 0
    shutil.copytree("runs/circles", "kept")
    for n in range(100):
        capfd.readouterr()
        shutil.rmtree("runs/circles")
        shutil.copytree("kept", "runs/circles")
        fault = At(n, full, only="write")
        monkeypatch.setattr(disk, "before", fault)
        status = main(["train", "--resume", "circles", "--steps", "4"])
        err = capfd.readouterr().err
        if fault.count <= n:
            break
        assert status == 1
        assert err.splitlines()[-1].startswith("ditlab: the disk is full")
        assert "Traceback" not in err
        assert not [p for p in Path("runs/circles").rglob(".*") if p.name != ".lock"]
        assert ditlab.load("circles").step in (2, 4)
    assert status == 0
    assert n >= 9


# ---- what happens to a checkpoint that was saved


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run")
    fit(RunFolder(folder / "r"), tiny("digits", checkpoint_every=2, preview_every=6), Nobody())
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


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
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
    """And ends with the bytes of a run that nothing happened to; what was damaged is written again."""
    whole = tree(runs)
    for step in (4, 6):
        flip(run / f"checkpoints/{step_name(step)}/ema.safetensors", random.Random(step))
    with pytest.warns(CheckpointWarning, match="step 2 is used instead"):
        fit(RunFolder(run), RunFolder(run).read_config(), Nobody(), resume=True)
    now = tree(run)
    assert now.keys() == whole.keys()
    for name in whole:
        assert now[name] == whole[name] or name == "metrics.jsonl", name


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
        fit(RunFolder(run), tiny("digits"), Nobody(), resume=True)
    assert tree(run) == before


def test_the_lab_walks_back_too(run):
    from ditlab.lab.library import Library

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
    fit(RunFolder(run), config, Nobody(), resume=True)
    assert saved_steps(run / "checkpoints") == [8, 9]
    assert ditlab.load(run).step == 9


# ---- one writer


def test_two_writers(in_tmp, capfd):
    """The second is refused, whatever it wants to do, until the first is gone, however it goes."""
    assert main(["train", "circles", "--name", "demo", "--steps", "2", *SMALL]) == 0
    script = """
        import time
        from ditlab.run import RunFolder
        with RunFolder("runs/demo").locked():
            print("locked", flush=True)
            time.sleep(600)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"locked\n"
        before = tree("runs")
        for words in (["train", "--resume", "demo", "--steps", "4"], ["demo", "--fresh"]):
            assert main(words) == 2
            assert "ditlab: runs/demo is being trained by another process" in capfd.readouterr().err
            assert tree("runs") == before
        assert main(["sample", "demo", "--n", "1", "--steps", "1", "--out", "x.png"]) == 0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert main(["train", "--resume", "demo", "--steps", "4"]) == 0


def test_readers_while_checkpoints_are_deleted(run):
    """Someone trains and keeps one checkpoint: whoever loads meanwhile gets a newer one, and never half of one."""
    config = RunFolder(run).read_config().model_copy(update={"steps": 40, "checkpoint_every": 1, "keep_last": 1})
    seen = []

    class Reader(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            seen.append(ditlab.load(run).step)

    fit(RunFolder(run), config.model_copy(update={"log_every": 1}), Reader(), resume=True)
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    with pytest.raises(InputError, match=r"no checkpoint of step 20 in .*; there are \[40\]"):
        ditlab.load(run, step=20)


def test_a_checkpoint_deleted_while_it_is_read(run, monkeypatch):
    """The next one is taken, though it was not there when the reader began."""
    from ditlab.training import checkpoint

    read = checkpoint.disk.read_json
    files = run / "checkpoints"

    def slowly(path):
        value = read(path)
        if (files / "step-00000006").exists() and path.name == MANIFEST:
            (files / "step-00000006").rename(files / ".gone")
            state = TrainState(tiny("digits"), build_dataset(tiny("digits")))
            load_checkpoint(files, state, 4)
            state.step = 8
            save(files, state)
        return value

    monkeypatch.setattr(checkpoint.disk, "read_json", slowly)
    assert ditlab.load(run).step == 8


def test_a_state_says_what_it_was(runs):
    said = json.loads((runs / "checkpoints/step-00000006/state.json").read_text())
    assert said["step"] == 6
    assert said["torch"] == torch.__version__
    assert said["network"]["heads"] == 2
