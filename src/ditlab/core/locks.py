"""File locks, which the system releases when the process that holds them ends, however it ends."""

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

SILENT = 1.0  # seconds of waiting before a warning


def lock(path: Path, patience: float = -1) -> FileLock:
    """A lock on a file.

    Args:
        path: the file.
        patience: seconds to wait for another holder; -1 waits for ever.

    Raises:
        InputError: the path exists and is not a plain file.
    """
    if os.path.lexists(path):  # filelock truncates what it opens
        must_be_file(path, path.parent)
    from filelock import FileLock

    return FileLock(path, timeout=patience)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock. Asking creates no file."""
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
        with opened(path, path.parent) as stream:  # closing it releases the lock
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (InputError, OSError):
        return False
    return False


@contextmanager
def alone(lock_file: Path, what: str, patience: float = math.inf) -> Iterator[None]:
    """Hold a lock within the block; a warning after a second names the process that is waited for.

    Args:
        lock_file: the file of the lock.
        what: what its holder is doing, such as "the same images are being prepared".
        patience: seconds to wait.

    Raises:
        InputError: another process, which is named, held it for longer than ``patience``.
    """
    from filelock import Timeout

    held = lock(lock_file)
    try:
        held.acquire(timeout=min(patience, SILENT))
    except Timeout:
        holder = holder_of(lock_file)
        if patience <= SILENT:
            raise InputError(f"{what} by {holder}: wait for it, or stop it") from None
        warnings.warn(f"{what} by {holder}: waiting for it", Caution, 3)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def holder_of(lock_file: Path) -> str:
    """The holder of a lock in words: "process 1234", also if it is stopped, or "another process" if unknown."""
    try:
        file = lock_file.stat()
        entries = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        holders = (entry[4] for entry in entries if entry[1] == "FLOCK" and entry[5].endswith(f":{file.st_ino}"))
        process = next(Path("/proc", pid) for pid in holders if _has_open(Path("/proc", pid), file))
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, StopIteration, IndexError):  # not Linux, another machine or user, or it has just ended
        return "another process"
    known = f"process {process.name}"
    return f"{known} (which is stopped: kill -CONT {process.name} lets it go on)" if state in "Tt" else known


def _has_open(process: Path, file: os.stat_result) -> bool:
    return any(os.path.samestat(entry.stat(), file) for entry in (process / "fd").iterdir() if entry.exists())
