"""Faults of the disk while a checkpoint is saved, and of two that write into one run: what was saved stays whole."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ditlab
from ditlab.cli.main import main
from ditlab.core import disk
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import FILES, LATEST, MANIFEST, saved_steps, step_name, verified
from ditlab.runs.folder import RunFolder
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loop import TrainState, train
from tests.reliability.faults import At, die, full, in_a_child, put_back, recorded, torn, tree, vanish
from tests.training.test_fit import tiny

SMALL = ["--batch-size", "4", "--network.dim", "8", "--network.depth", "1", "--network.heads", "2"]
SMALL += ["--sampling.steps", "1", "--preview-every", "100", "--precision", "fp32", "--log-every", "2"]


OPERATIONS = 23  # on the disk in a save that deletes one checkpoint


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
    new, gone = (f".{step_name(step)}.{os.getpid()}@{disk.HOST}.tmp" for step in (3, 1))
    *parts, facts = FILES
    files = [*parts, "averages.safetensors", facts, MANIFEST]
    assert len(seen) == OPERATIONS
    assert seen == [
        ("fsync", "checkpoints"),
        *[("write", name) for name in files],
        *[("fsync", name) for name in sorted(files)],
        ("fsync", new),
        ("rename", "step-00000003"),
        ("fsync", "checkpoints"),
        ("write", f".LATEST.{os.getpid()}@{disk.HOST}.tmp"),
        ("fsync", f".LATEST.{os.getpid()}@{disk.HOST}.tmp"),
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
    assert not left or n >= 21, left  # of a deletion that was stopped
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
        put_back(folder, before)

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
    before, metrics = tree(folder), tmp_path / "metrics.jsonl"
    for n in range(20):
        put_back(folder, before)
        metrics.write_text('{"step": 2, "seconds": 1.0}\n{"step": 3, "seconds": 2.0}\n')

        def action(n=n):
            disk.before = At(n, die)
            RunFolder(tmp_path).cut(2)

        ended = in_a_child(action)
        assert verified(folder, 2)
        assert RunFolder(tmp_path).step in saved_steps(folder)
        RunFolder(tmp_path).cut(2)
        assert saved_steps(folder) == [2]
        assert metrics.read_text() == '{"step": 2, "seconds": 1.0}\n'
        assert (folder / LATEST).read_text().strip() == "step-00000002"
        assert not [name for name in tree(folder) if name.startswith(".")]
        if ended == 0:
            break
    assert 6 < n < 20


@pytest.mark.parametrize("n", range(8))
def test_disk_full_at_every_write(checkpoints, monkeypatch, n):
    folder, state = checkpoints
    before = tree(folder)
    fault = At(n, full, only=["write"])
    monkeypatch.setattr(disk, "before", fault)
    with pytest.raises(OSError, match="No space left") if n < 7 else pytest.MonkeyPatch.context():
        save(folder, state)
    assert fault.count == min(n + 1, 7)
    assert not look(folder, before)
    if n < 6:
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
        fault = At(n, full, only=["write", "append"])
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


# ---- one writer


def test_two_writers(in_tmp, capfd):
    """The second is refused, whatever it wants to do, until the first is gone, however it goes."""
    assert main(["train", "circles", "--name", "demo", "--steps", "2", *SMALL]) == 0
    script = """
        import time
        from ditlab.runs.folder import RunFolder
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
            assert re.search(
                r"ditlab: runs/demo is being trained by (another process|process \d+):", capfd.readouterr().err
            )
            assert tree("runs") == before
        assert main(["sample", "demo", "--n", "1", "--steps", "1", "--out", "x.png"]) == 0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert main(["train", "--resume", "demo", "--steps", "4"]) == 0
