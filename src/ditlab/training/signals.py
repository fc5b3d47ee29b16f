"""SIGINT, SIGTERM and SIGHUP as wishes: collected while training runs, so that it ends between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))


@contextmanager
def collected(*, patient: bool = False) -> Iterator[list[int]]:
    """Collect them instead of dying; the second one acts at once. A hang-up that nohup has put off is let pass.

    If ``patient``, later ones are collected too: whoever started many processes may send them one signal twice.

    Shells that start a job in the background have it ignore SIGINT: here it is heard all the same.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python delivers no signals
        yield received
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    if before[signal.SIGINT] == signal.SIG_IGN:
        before[signal.SIGINT] = signal.default_int_handler
    if HANGUP and before[HANGUP] == signal.SIG_IGN:
        del before[HANGUP]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def collect(number: int, _: FrameType | None) -> None:
        received.append(number)
        if not patient:
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
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where workers start to ignore them a moment later
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """In a worker: leave it to the training process to stop."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
