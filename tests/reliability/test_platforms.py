"""What only POSIX has is done without where it is missing, as on Windows."""

import errno
import faulthandler
import fcntl
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ditlab.bench.machine import machine
from ditlab.config import ImagesData
from ditlab.core import disk
from ditlab.data.images.dataset import Images
from ditlab.lab.server.serve import _affordable
from ditlab.lab.server.timeouts import Limits
from ditlab.recipes import RECIPES
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training import signals
from ditlab.training import watchdog as stacks
from tests.images import folder_of
from tests.training.test_fit import Nobody, tiny

ONLY_POSIX = {
    os: ("O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "sched_getaffinity", "sysconf", "register_at_fork"),
    signal: ("pthread_sigmask", "SIGUSR1", "SIGHUP", "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "setitimer"),
    faulthandler: ("register", "unregister"),
}


@pytest.fixture
def elsewhere(monkeypatch):
    """This process on a system without these names, which opens no folder and flushes only what may be written."""
    opened, flushed = os.open, os.fsync

    def open_file(path, flags, *rest, **more):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed(descriptor)

    monkeypatch.setattr("filelock._unix.os", SimpleNamespace(**vars(os)))  # which has a part of its own for Windows
    monkeypatch.setattr(disk, "WINDOWS", True)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setitem(sys.modules, "resource", None)
    for module, names in ONLY_POSIX.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)


def test_images_are_read_and_runs_are_written_without_posix(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    data = Images(str(folder_of(tmp_path / "pictures")), (8, 8), classes=("a", "b"))
    data.prepare(tmp_path / "quarantine.jsonl")
    assert data.batch(0, 0, 12).x0.shape == (12, 3, 8, 8)
    folder = RunFolder(tmp_path / "run")
    fit(tiny("points", steps=1), folder, watcher=Nobody())
    assert folder.step == 1


def test_signals_stacks_and_limits_do_without_posix(elsewhere, tmp_path, monkeypatch):
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    try:
        with signals.blocked():
            signals.ignore()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stacks.answer_in(tmp_path)
    monkeypatch.setattr(stacks, "workers", lambda: [object()])
    assert "test_platforms" in stacks.write_stacks(tmp_path, "hung").read_text()
    assert _affordable(Limits()) == Limits()
    assert machine()["memory_gib"] is None


def test_the_configuration_is_utf_8_whatever_the_system_prefers(tmp_path, monkeypatch):
    """Windows writes text in the code page of the country unless it is told."""
    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding="cp1252": write_text(path, text, encoding))
    config = RECIPES["images"]()
    config = config.model_copy(update={"data": ImagesData(path="p", image_size=(32, 32), classes=("café", "猫"))})
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    assert folder.read_config().data.classes == ("café", "猫")
