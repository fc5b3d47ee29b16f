"""Locks that the system lets go of when the process that holds them ends, however it does."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.core.disk import must_be_file, opened
from ditlab.core.errors import Caution, InputError

if TYPE_CHECKING:
    from filelock import FileLock

BEFORE_A_WORD = 1.0  # seconds that a lock is waited for in silence


def lock(path: Path, patience: float = -1) -> FileLock:
    """A lock in a file.

    Args:
        path: of the file.
        patience: seconds that whoever acquires it waits for another; -1 is for ever.

    Raises:
        InputError: something else than a plain file is in its place.
    """
    if os.path.lexists(path):  # what it opens it also empties
        must_be_file(path, path.parent)
    from filelock import FileLock

    return FileLock(path, timeout=patience)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock; asking leaves nothing behind."""
    if sys.platform == "win32":
        from filelock import Timeout

        asked = lock(path, 0)
        try:
            asked.acquire()
        except Timeout:
            return True
        asked.release()
        return False
    import fcntl

    try:
        with opened(path, path.parent) as stream:  # closing lets go of it
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (InputError, OSError):
        return False
    return False


@contextmanager
def alone(lock_file: Path, what: str, patience: float = math.inf) -> Iterator[None]:
    """Hold a lock.

    A warning says after a second for whom it is waited.

    Args:
        lock_file: which one.
        what: what is being done by whoever holds it, such as "the same images are being prepared".
        patience: seconds that it is waited for.

    Raises:
        InputError: another process holds it for longer than ``patience``; it is named.
    """
    from filelock import Timeout

    held = lock(lock_file)
    try:
        held.acquire(timeout=min(patience, BEFORE_A_WORD))
    except Timeout:
        holder = holder_of(lock_file)
        if patience <= BEFORE_A_WORD:
            raise InputError(f"{what} by {holder}: wait for it, or stop it") from None
        warnings.warn(f"{what} by {holder}: waiting for it", Caution, 3)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def holder_of(lock_file: Path) -> str:
    """Who holds a lock, as far as the system tells: "process 1234", that it is stopped, or "another process"."""
    try:
        file = lock_file.stat()
        entries = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        holders = (entry[4] for entry in entries if entry[1] == "FLOCK" and entry[5].endswith(f":{file.st_ino}"))
        process = next(Path("/proc", pid) for pid in holders if _has_open(Path("/proc", pid), file))
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, StopIteration, IndexError):  # no Linux, another machine or user, or it has just ended
        return "another process"
    known = f"process {process.name}"
    return f"{known} (which is stopped: kill -CONT {process.name} lets it go on)" if state in "Tt" else known


def _has_open(process: Path, file: os.stat_result) -> bool:
    return any(os.path.samestat(entry.stat(), file) for entry in (process / "fd").iterdir() if entry.exists())
