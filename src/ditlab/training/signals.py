"""SIGINT, SIGTERM and SIGHUP as wishes: collected while training runs, so that it ends between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collect them instead of dying; the second one acts at once, as it would have before. Ignored ones stay so."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python delivers no signals
        yield received
        return
    before = {number: handler for number in STOPPING if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def collect(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, collect)
    try:
        yield received
    finally:
        restore()


@contextmanager
def blocked() -> Iterator[None]:
    """Keep them back for a moment: a process started meanwhile is born deaf to them, until it says otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """In a worker: leave it to the training process to stop."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
