"""One thread does all the computing, and a short queue stands before it.

A server answers many clients at once, but there is one processor to share: two trajectories computed side by side take
as long as one after the other, and twice the memory. So jobs wait in line, a full line says so at once, and a client
that leaves takes its job along: a waiting job is dropped, a running one stops at its next look.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Look = Callable[[], None]

SECONDS_BETWEEN_LOOKS = 0.1  # how often a waiting request asks whether its client is still there
SECONDS_TO_CLOSE = 0.5


class Busy(Exception):
    """The queue is full; nothing was computed. Try again a little later."""


class Gone(Exception):
    """Nobody waits for the result any more."""


class Worker:
    """The one thread that computes.

    Args:
        capacity: how many jobs may wait; the one that runs is not counted.
    """

    def __init__(self, capacity: int = 32) -> None:
        self._capacity = capacity
        self._queue: deque[_Job[Any]] = deque()
        self._running: _Job[Any] | None = None
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a job that never looks up cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="ditlab-worker", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[Look], T], disconnected: Callable[[], Awaitable[bool]]) -> T:
        """Have a job computed; return what it returns, raise what it raises.

        Args:
            job: called in the worker's thread with ``look``, which it calls between steps; ``look()`` raises ``Gone``
                once the client has left.
            disconnected: whether the client has left (``request.is_disconnected``; read the body before). Cancelling
                this coroutine counts as leaving, too.

        Raises:
            Busy: the queue is full.
            Gone: the client left, or the worker was closed.
        """
        place = _Job(job)
        self._enter(place)
        answer = asyncio.wrap_future(place.future)
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=SECONDS_BETWEEN_LOOKS)
                if not answer.done() and await disconnected():
                    raise Gone("the client left")
            return answer.result()
        finally:
            self._leave(place)
            answer.cancel()

    @property
    def waiting(self) -> int:
        """Jobs queued or running."""
        with self._changed:
            return len(self._queue) + (self._running is not None)

    def close(self) -> None:
        """Take no more jobs, drop those that wait, and stop the one that runs at its next look."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                job.future.set_exception(Gone("the server stops"))
            self._queue.clear()
            if self._running is not None:
                self._running.left.set()
            self._changed.notify()
        self._thread.join(SECONDS_TO_CLOSE)

    def _enter(self, job: _Job[Any]) -> None:
        with self._changed:
            if self._closed or len(self._queue) >= self._capacity:
                raise Busy(f"{len(self._queue)} computations wait already; try again in a second")
            self._queue.append(job)
            self._changed.notify()

    def _leave(self, job: _Job[Any]) -> None:
        """The client goes, with its answer or without: give its place in the queue to the next."""
        job.left.set()
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.compute()
            with self._changed:
                self._running = None
            del job  # while the thread waits for the next job, nothing of the last stays in memory

    def _next(self) -> _Job[Any] | None:
        """The job whose turn it is, once there is one; None when the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            self._running = self._queue.popleft()
            self._running.future.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only left
            return self._running


class _Job(Generic[T]):
    """A computation, the promise of its result, and whether anyone still waits for it."""

    def __init__(self, task: Callable[[Look], T]) -> None:
        self.task = task
        self.future: Future[T] = Future()
        self.left = threading.Event()

    def look(self) -> None:
        """Raise ``Gone`` if nobody waits any more."""
        if self.left.is_set():
            raise Gone("the client left")

    def compute(self) -> None:
        """Keep the promise."""
        try:
            self.look()
            self.future.set_result(self.task(self.look))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold arrays, and an error may live long
            self.future.set_exception(error)
