"""Where everyone stands, for a look at what hangs: the stacks of all threads, here and in the worker processes."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from ditlab import disk

STACKS = "stalled"
_SCRATCH = ".stacks"  # the workers' own, open for the case that they are asked
_WORKER = "ditlab worker"
_ANSWER = 0.5  # seconds that workers are given to write their stacks


def place(folder: Path, stem: str = STACKS) -> Path:
    """The file of this process: of several that train together, and their workers, each rank has its own."""
    rank = os.environ.get("RANK", "0")
    return folder / (f"{stem}.txt" if rank == "0" else f"{stem}-{rank}.txt")


def workers() -> list[BaseProcess]:
    """The worker processes that are alive."""
    return [process for process in multiprocessing.active_children() if process.name.startswith(_WORKER)]


def call_worker(process: BaseProcess) -> None:
    """Name a new process so that ``workers`` knows it."""
    process.name = f"{_WORKER} {process.pid}"


def answer_in(folder: Path) -> None:
    """In a worker: write the stacks of all threads when asked for by SIGUSR1, even if one holds the interpreter.

    Windows has no such signal: there the stacks of the training process are all there is.
    """
    if not hasattr(signal, "SIGUSR1"):
        return
    file = place(folder, _SCRATCH)
    if file.is_symlink():  # which somebody put there: what it points to is not written to
        file.unlink(missing_ok=True)
    stream = file.open("a")  # stays open as long as the process lives
    faulthandler.register(signal.SIGUSR1, stream)


def clear(folder: Path) -> None:
    """Take away what workers had open."""
    place(folder, _SCRATCH).unlink(missing_ok=True)


def write_stacks(folder: Path, headline: str) -> Path:
    """Write the stacks of this process and of its workers into ``folder/stalled.txt``; return that file."""
    file = place(folder)
    disk.discard(file)  # never through a link
    with file.open("w") as stream:
        print(headline, "\n\ntraining process:", sep="", file=stream, flush=True)
        faulthandler.dump_traceback(stream)
        if (asked := workers()) and hasattr(signal, "SIGUSR1"):
            for pid in [process.pid for process in asked if process.pid is not None]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
            time.sleep(_ANSWER)
            with contextlib.suppress(FileNotFoundError):
                print("\nworker processes:\n", place(folder, _SCRATCH).read_text(), sep="", file=stream)
    return file
