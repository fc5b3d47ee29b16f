"""Faults to put where ``ditlab.core.disk.before`` is, and what a folder holds afterwards."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ditlab.core import disk


def tree(folder):
    """Every file under a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def put_back(folder, files):
    """Make a folder what ``tree`` saw."""
    shutil.rmtree(folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def recorded(monkeypatch, action):
    """The operations on the disk that an action makes, in order."""
    seen = []
    monkeypatch.setattr(disk, "before", lambda operation, path: seen.append((operation, path.name)))
    action()
    monkeypatch.undo()
    return seen


@contextmanager
def asked(module):
    """A process of a test module that answers each line of JSON on its stdin: what to send it, what it answers next."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    def send(line):
        process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()

    yield send, lambda: json.loads(process.stdout.readline())
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


class At:
    """Does something before the ``n``-th operation, from 0, and before no other."""

    def __init__(self, n, act, only=None):
        self.n, self.act, self.only = n, act, only
        self.count = 0

    def __call__(self, operation, path):
        if self.only is None or operation in self.only:
            self.count += 1
            if self.count == self.n + 1:
                self.act(operation, path)


def full(_, path):
    """The disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def torn(operation, path):
    """As far as an operation on many bytes can come before the process dies: a part of a file, line or folder."""
    if operation == "write":
        path.write_bytes(b"\0" * 100)
    if operation == "append":
        with path.open("ab") as stream:
            stream.write(b'{"step": 7, "lo')
    if operation == "delete" and path.is_dir():
        next(file for file in path.iterdir() if file.is_file()).unlink()


def die(operation, path):
    """The process is killed, with no chance to clean up."""
    torn(operation, path)
    os.kill(os.getpid(), signal.SIGKILL)


def vanish(*_):
    """The process is gone at once."""
    os._exit(9)


def in_a_child(action, deadline=120):
    """Run an action in a forked process; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
            os._exit(1)
    return ended(child, deadline)


def ended(child, deadline=60):
    """How a forked process ended."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("the child hangs")
