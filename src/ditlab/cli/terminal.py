"""The terminal, which may be gone, full, or able to show ASCII alone. Imports no torch."""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

PLAIN = "ditlab.plain"  # the name of the error handler that ``_spelled`` is
SPELLED = {"✓": "+", "✗": "x", "·": "-", "→": "->", "×": "x", "−": "-", "–": "-", "…": "...", "²": "^2", "³": "^3"}
A_WHILE = 1.0  # seconds of silence
LINES = {"─": "-", "━": "-", "│": "|", "█": "#"}


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """What stands in ASCII for characters that a terminal does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    known, frame = SPELLED | LINES, range(0x2500, 0x2580)
    text = error.object[error.start : error.end]
    return "".join(known.get(c, "+" if ord(c) in frame else ascii(c)[1:-1]) for c in text), error.end


codecs.register_error(PLAIN, _spelled)


class Forgiving:
    """A stream of text that drops what it cannot write, and else is what it is given."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def fill_descriptors() -> None:
    """Open the null device in the place of standard streams that are closed, lest a file of a run take their numbers.

    ``sys.stdout`` and ``sys.stderr``, which Python leaves out then, are there again.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - as long as the process lives


@contextmanager
def spoken(results_matter: bool) -> Iterator[None]:
    """Within the block words that stderr cannot take are dropped, and characters that a stream has not are spelled.

    Results that stdout cannot take are dropped as well, unless they matter.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)
    sys.stderr = cast(TextIO, Forgiving(sys.stderr))
    if not results_matter:
        sys.stdout = cast(TextIO, Forgiving(sys.stdout))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def announce_loading() -> None:
    """Say on a terminal that PyTorch is being loaded, where that takes longer than a second."""

    def say() -> None:
        if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
            print("loading PyTorch", file=sys.stderr, flush=True)

    if sys.stderr.isatty():
        timer = threading.Timer(A_WHILE, say)
        timer.daemon = True
        timer.start()


def hush() -> None:
    """Write what is left to be said; where that cannot be done, see that Python does not try again as it ends."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - as long as the process lives
