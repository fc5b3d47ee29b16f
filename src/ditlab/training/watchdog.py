"""Ends a training that hangs, and leaves a trace of where."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
from pathlib import Path

from ditlab.training import stacks

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
        for process in stacks.workers():
            process.kill()
        os._exit(1)

    def _speak(self) -> None:
        message = f"no step was finished for {self.limit:g} s"
        cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
        shown = f"see {stacks.place(self.folder)}; what was saved before is whole"
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(2, cursor + f"ditlab: {message}: {shown}\n".encode())  # first, since the disk may be what hangs
        with contextlib.suppress(OSError):
            stacks.write_stacks(self.folder, message)
