"""Ends a training that hangs, and leaves a trace of where."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from ditlab.core import disk

LOOKS, SECONDS_BETWEEN_LOOKS = 20, 5.0  # within the limit at least; at most
LAST_WORDS = 10.0  # seconds to write them, on a disk or to a terminal that may be what hangs


class Watchdog:
    """Within a ``with``, ends the process with status 1 if ``beat`` is not called for so many seconds.

    The stacks of all threads and of the worker processes go into ``folder/stalled.txt``, and a line to stderr.
    Checkpoints are whole or not there, so that ending in the middle of one loses none. Time is counted in looks and not
    read from a clock: a clock that is set, or a process that was stopped for a while, raises no alarm.

    Args:
        folder: where to leave the trace.
        limit: seconds.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.beats = 0
        self.extra = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Say that training goes on."""
        self.beats += 1
        self.extra = 0.0

    def expect(self, extra: float) -> None:
        """Say that the next beat may take so many seconds more."""
        self.extra = extra

    def __enter__(self) -> Watchdog:
        self._arm()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        between = min(self.limit / LOOKS, SECONDS_BETWEEN_LOOKS)
        seen, quiet = self.beats, 0
        while not self._over.wait(between):
            self._arm()
            seen, quiet = self.beats, quiet + 1 if self.beats == seen else 0
            if quiet > math.ceil((self.limit + self.extra) / between):  # who waits for so long itself speaks first
                self._end()

    def _arm(self) -> None:
        """Should even this thread get no turn, since another keeps the interpreter, the system ends the process."""
        with contextlib.suppress(OSError, OverflowError, ValueError):  # stderr is no file, or the limit beyond all time
            if sys.__stderr__ is not None:
                limit = 2 * (self.limit + self.extra)
                faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)

    def _end(self) -> None:
        words = threading.Thread(target=self._speak, daemon=True)
        words.start()
        words.join(LAST_WORDS)
        for process in workers():
            process.kill()
        os._exit(1)

    def _speak(self) -> None:
        message = f"no step was finished for {self.limit:g} s"
        cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
        shown = f"see {place(self.folder)}; what was saved before is whole"
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(2, cursor + f"ditlab: {message}: {shown}\n".encode())  # first, since the disk may be what hangs
        with contextlib.suppress(OSError):
            write_stacks(self.folder, message)


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
