"""A run folder is foreign data: nothing outside it is touched or served, and nothing in it is waited for."""

import errno
import json
import os
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest

import ditlab
from ditlab.cli.main import guarded, main
from ditlab.core import disk, locks
from ditlab.core.errors import CheckpointWarning, InputError
from ditlab.lab.export import embed
from ditlab.lab.lens.recordings import gate_recordings, picture, previews
from ditlab.lab.notebook import frame
from ditlab.lab.server.library import Library
from ditlab.runs.checkpoint import MANIFEST, damage, saved_steps
from ditlab.runs.folder import MADE, RunFolder
from ditlab.train import fit
from tests.reliability.faults import tree
from tests.training.test_fit import Nobody, tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of circles, with checkpoints at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run") / "r"
    fit(tiny(steps=4, checkpoint_every=2, preview_every=2, eval_every=None), RunFolder(folder), watcher=Nobody())
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "r")
    return tmp_path / "r"


@pytest.fixture
def outside(tmp_path):
    """A home that holds what a run never made, under names that a run might have."""
    home = tmp_path / "home"
    for name in (".git/config", ".ssh/id", ".config.json.backup", "step-00000004.png", "step-00000009.safetensors"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    return home


def instead(path, target):
    """A link in the place of a file or folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)


def said(capsys, *words):
    """The last line that a refused command ends with."""
    assert main([str(word) for word in words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ditlab: ")
    return line


# ---- deleted


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("name", [*MADE, "tensorboard"])
def test_resuming_never_deletes_through_a_link(run, outside, capsys, name, steps):
    """A finished run, and one that goes on: the link is named, and what it points to is as it was."""
    instead(run / name, outside)
    before = tree(outside)
    line = said(capsys, "train", "--resume", run, "--steps", steps)
    assert f"{run / name} is a link" in line
    assert "make its folder the link" in line
    assert tree(outside) == before


def test_only_what_ditlab_made_is_swept_and_cut(run):
    """Names that a training gives, in its own form: what a person put beside them stays."""
    theirs = [".git/config", "samples/.git/config", "samples/.hidden.png", "checkpoints/.keep", ".config.json.bak"]
    theirs += ["samples/step-00000009.txt", "probes/step-00000009.png", "samples/step-9.png", ".stacks-mine.txt"]
    theirs += ["samples/step-00000009.png.orig", "checkpoints/step-00000009-mine/x", "samples/step-00000008.png/x"]
    ours = ["samples/step-00000009.png", "failures/step-00000009.json", "averages/step-00000009.safetensors"]
    ours += ["samples/.step-00000002.png.77@elsewhere.tmp.png", "checkpoints/.step-00000004.77.tmp/model.safetensors"]
    ours += ["checkpoints/.damaged-step-00000004.77@a-b.tmp/x", "checkpoints/.LATEST.7@h.tmp", ".stacks-1.txt"]
    ours += [".metrics.jsonl.77@elsewhere.tmp.jsonl", ".eval.json.77@h.tmp.json", "probes/.tmpA1b2C3"]
    for name in (*theirs, *ours):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    fit(RunFolder(run).read_config(), RunFolder(run), watcher=Nobody(), resume=True)
    there = tree(run)
    assert not there.keys() & set(ours)
    assert set(theirs) <= there.keys()


def test_the_cache_and_a_demo_sweep_no_more_than_their_own(tmp_path):
    """A folder's leftovers are known by name, process and ending, here and in stores of images and latents."""
    ours = [".demo.12@host.tmp", ".demo.12.tmp"]
    for name in (*ours, ".demo.backup.tmp", ".demo.12@host.tmp.d.e", ".demonstration.12@h.tmp", "demo"):
        (tmp_path / name).mkdir()
    assert [path.name for path in disk.unfinished(tmp_path, "demo")] == sorted(ours)


def test_what_is_deleted_is_a_link_and_not_what_it_points_to(tmp_path):
    for delete in (disk.remove, disk.discard):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs/x").write_text("x")
        for target in ("theirs", "theirs/x", "nowhere"):
            (tmp_path / "link").symlink_to(tmp_path / target)
            delete(tmp_path / "link")
            assert not os.path.lexists(tmp_path / "link")
        assert (tmp_path / "theirs/x").read_text() == "x"


def test_nothing_is_written_through_a_link_that_was_put_there(tmp_path, outside):
    """In the place of a hidden file that is to be written, of the workers' stacks, of a lock."""
    from ditlab.training.watchdog import answer_in, place, write_stacks

    before = tree(outside)
    disk.hidden(tmp_path / "a.txt").symlink_to(outside / ".ssh/id")
    disk.write_atomically(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "a.txt").read_text() == "new"
    for file in (place(tmp_path), place(tmp_path, ".stacks")):
        file.symlink_to(outside / ".ssh/id")
    write_stacks(tmp_path, "headline")
    answer_in(tmp_path)
    (tmp_path / ".lock").symlink_to(outside / ".ssh/id")
    with pytest.raises(InputError, match="is a link"):
        locks.lock(tmp_path / ".lock")
    assert tree(outside) == before


# ---- read and served


@pytest.mark.parametrize("name", ["config.json", "checkpoints", "checkpoints/step-00000004", ".lock"])
def test_a_link_out_of_a_run_is_not_followed(run, made, capsys, name):
    """Even to what would do: the line names it."""
    instead(run / name, made / name)
    if name == "checkpoints/step-00000004":
        with pytest.warns(CheckpointWarning, match="step-00000004 is a link.*step 2 is used instead"):
            assert ditlab.load(run).step == 2
        return
    assert f"{run / name} is a link" in said(capsys, "train", "--resume", run, "--steps", 5)
    if name != ".lock":
        with pytest.raises(InputError, match="is a link"):
            ditlab.load(run)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json", MANIFEST])
def test_a_file_of_a_checkpoint_that_is_a_link_is_damage(run, made, name):
    instead(run / "checkpoints/step-00000004" / name, made / "checkpoints/step-00000004" / name)
    with pytest.warns(CheckpointWarning, match=rf"{name} is a link.*step 2 is used instead"):
        assert ditlab.load(run).step == 2


def test_a_run_folder_may_be_a_link_itself(run, tmp_path, capsys):
    """What a person keeps on another disk is found through the one link that is theirs."""
    (tmp_path / "big").symlink_to(run)
    assert ditlab.load(tmp_path / "big").step == 4
    assert main(["train", "--resume", str(tmp_path / "big"), "--steps", "5"]) == 0
    assert saved_steps(run / "checkpoints")[-1] == 5
    assert Library(tmp_path / "big").folders()
    capsys.readouterr()


def test_the_lab_serves_no_link(run, outside, monkeypatch):
    """Neither a picture, nor a folder of pictures; nor does an export hold one."""
    monkeypatch.setattr("ditlab.lab.export._answers", lambda *_: [])  # which takes seconds, and reads no picture
    folder, secret = RunFolder(run), outside / ".ssh/id"
    instead(run / "samples/step-00000004.png", secret)
    instead(run / "probes/step-00000004.safetensors", secret)
    assert previews(folder) == [0, 2]
    with pytest.raises(InputError, match="is a link"):
        picture(folder, 4)
    library = Library(run)
    paths = embed(library, next(iter(library.folders())))["paths"]
    assert [path.rsplit("/", 1)[1] for path in paths if "/samples/" in path] == ["0", "2"]
    instead(run / "samples", outside)
    with pytest.raises(InputError, match="is a link"):
        picture(folder, 4)


def test_what_is_shown_names_no_place_of_this_machine(run, tmp_path, monkeypatch):
    """A notebook is passed on: neither its page nor an exported one holds the path of the run."""
    for numbers in ("_answers", "_attention_alone"):
        monkeypatch.setattr(f"ditlab.lab.export.{numbers}", lambda *_: [])
    library = Library(run)
    assert str(tmp_path) not in frame(ditlab.load(run))
    assert str(tmp_path) not in json.dumps(embed(library, next(iter(library.folders()))))


# ---- nothing is waited for


WAITED_FOR = {"config.json": "doctor", ".lock": "doctor", "eval.json": "eval", "checkpoints/LATEST": "sample"}
WAITED_FOR |= {"checkpoints/step-00000004/" + name: "sample" for name in ("ema.safetensors", "state.json", MANIFEST)}
WAITED_FOR |= {"samples/step-00000004.png": "lab", "probes/step-00000004.safetensors": "lab", "metrics.jsonl": "train"}


@pytest.mark.parametrize("name", WAITED_FOR)
def test_a_pipe_is_not_waited_for(run, capsys, name):
    """Whoever opens a named pipe waits for somebody to write: every reader is through, whatever it says of it."""
    verb = WAITED_FOR[name]
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    if verb == "lab":
        library, folder = Library(run), RunFolder(run)
        described = library.describe(next(iter(library.folders())), None, "ema")
        assert described["previews"] == previews(folder)
        gate_recordings(folder)
        with pytest.raises(InputError, match="is a pipe") if name.endswith("png") else nullcontext():
            picture(folder, 4)
        return
    words = {"train": ["--resume", run, "--steps", 4], "eval": [run, "--n", 64, "--steps", 1]}.get(verb, [run])
    assert main([str(word) for word in (verb, *words)]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    """A pipe, a socket, a folder, and a device that never ends: each is named."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # for its own path may be too long for a socket
        server.bind("socket")
    for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe, a socket or a device"):
            disk.opened(path)
    with pytest.raises(InputError, match="is a folder"):
        disk.opened(tmp_path)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        disk.read(Path(__file__), 100)


# ---- what cannot be read


def test_an_unreadable_folder_of_checkpoints_is_said_to_be(run, capsys, monkeypatch):
    """And resuming does not take it for empty: the metrics stay."""
    before = (run / "metrics.jsonl").read_bytes()
    names = disk.names

    def refused(folder, within=None):
        if folder.name == "checkpoints":
            raise InputError(f"{folder} cannot be read: {os.strerror(errno.EACCES)}")
        return names(folder, within)

    monkeypatch.setattr(disk, "names", refused)
    for verb in (
        ["sample", run],
        ["train", "--resume", run],
        ["train", "--resume", run, "--steps", 9],
        ["doctor", run],
    ):
        assert f"{run / 'checkpoints'} cannot be read: Permission denied" in said(capsys, *verb)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_names_of_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    """None is there, or it is said why not."""
    assert disk.names(tmp_path / "nowhere") == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be read: Not a directory"):
        disk.names(tmp_path / "file")

    def refused(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        disk.names(tmp_path)


@pytest.mark.parametrize("told", ["No such device (os error 24)", "unable to mmap 8 bytes from file <x>: C (12)"])
def test_a_checkpoint_that_the_system_refuses_is_not_damaged(tmp_path, told):
    """Too many open files, or no memory: an older one is not taken for it, nor is it set aside."""
    with pytest.raises(OSError, match=r"Too many open files|Cannot allocate memory"), damage(tmp_path):
        raise RuntimeError(told)


def test_too_many_open_files_are_a_line(capsys):
    def verb(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    assert guarded(verb, []) == 1
    assert "ulimit -n" in capsys.readouterr().err
