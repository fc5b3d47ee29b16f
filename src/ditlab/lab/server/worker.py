"""One thread does all the computing, and short queues stand before it, one for each rank of jobs.

A server answers many clients at once, but there is one processor to share: two trajectories computed side by side take
as long as one after the other, and twice the memory. So jobs wait in line, a full line says so at once, and a client
that leaves takes its job along: a waiting job is dropped, a running one stops at its next look.

A measurement takes seconds or minutes, a click milliseconds. So jobs of a higher rank come first, and a job lets them
in each time it looks up: they are computed there and then, in the same thread, and it goes on afterwards. Whoever calls
``look`` therefore leaves no traces in what others use, such as hooks on a shared network.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Look = Callable[[], None]

SECONDS_BETWEEN_LOOKS = 0.1  # how often a waiting request asks whether its client is still there
SECONDS_TO_CLOSE = 0.5


class Rank(IntEnum):
    """What comes first; within a rank, who came first."""

    OPEN = 0  # what a page needs before it can show anything
    LOOK = 1  # one or a few passes of a network: what a click asks
    DRAW = 2  # samples and trajectories
    MEASURE = 3  # many images, or many samples


class Busy(Exception):
    """The queue is full; nothing was computed. Try again a little later."""


class Gone(Exception):
    """Nobody waits for the result any more."""


class Worker:
    """The one thread that computes.

    Args:
        capacity: how many jobs of a rank may wait; those that have begun are not counted.
    """

    def __init__(self, capacity: int = 32) -> None:
        self._capacity = capacity
        self._queues: dict[Rank, deque[_Job[Any]]] = {rank: deque() for rank in Rank}
        self._begun: list[_Job[Any]] = []  # the last is computed, each of the others let the next one in
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a job that never looks up cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="ditlab-worker", daemon=True)
        self._thread.start()

    async def run(
        self, job: Callable[[Look], T], disconnected: Callable[[], Awaitable[bool]], rank: Rank = Rank.LOOK
    ) -> T:
        """Have a job computed; return what it returns, raise what it raises.

        Args:
            job: called in the worker's thread with ``look``, which it calls between steps; ``look()`` raises ``Gone``
                once the client has left, and computes jobs of a higher rank that have come meanwhile.
            disconnected: whether the client has left (``request.is_disconnected``; read the body before). Cancelling
                this coroutine counts as leaving, too.
            rank: of the job.

        Raises:
            Busy: the queue is full.
            Gone: the client left, or the worker was closed.
        """
        place = _Job(job, rank, self._let_in)
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
            return sum(map(len, self._queues.values())) + len(self._begun)

    def close(self) -> None:
        """Take no more jobs, drop those that wait, and stop the one that runs at its next look."""
        with self._changed:
            self._closed = True
            for queue in self._queues.values():
                for job in queue:
                    job.future.set_exception(Gone("the server stops"))
                queue.clear()
            for job in self._begun:
                job.left.set()
            self._changed.notify()
        self._thread.join(SECONDS_TO_CLOSE)

    def _enter(self, job: _Job[Any]) -> None:
        with self._changed:
            queue = self._queues[job.rank]
            if self._closed or len(queue) >= self._capacity:
                raise Busy(f"{len(queue)} computations wait already; try again in a second")
            queue.append(job)
            self._changed.notify()

    def _leave(self, job: _Job[Any]) -> None:
        """The client goes, with its answer or without: give its place in the queue to the next."""
        job.left.set()
        with self._changed:
            if job in self._queues[job.rank]:
                self._queues[job.rank].remove(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: any(self._queues.values()) or self._closed)
                if self._closed:
                    return
            self._compute_next(list(Rank))

    def _let_in(self, rank: Rank) -> None:
        """Compute all that comes before a job of that rank, which waits meanwhile."""
        while self._compute_next([higher for higher in Rank if higher < rank]):
            pass

    def _compute_next(self, ranks: list[Rank]) -> bool:
        """Compute the job whose turn it is, of these ranks; whether there was one."""
        with self._changed:
            queue = next((self._queues[rank] for rank in ranks if self._queues[rank]), None)
            if queue is None:
                return False
            job = queue.popleft()
            job.future.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only left
            self._begun.append(job)
        job.compute()
        with self._changed:
            self._begun.pop()
        return True


class _Job(Generic[T]):
    """A computation, the promise of its result, and whether anyone still waits for it."""

    def __init__(self, task: Callable[[Look], T], rank: Rank, let_in: Callable[[Rank], None]) -> None:
        self.task, self.rank, self._let_in = task, rank, let_in
        self.future: Future[T] = Future()
        self.left = threading.Event()

    def look(self) -> None:
        """Raise ``Gone`` if nobody waits any more; let in who comes first."""
        if self.left.is_set():
            raise Gone("the client left")
        self._let_in(self.rank)

    def compute(self) -> None:
        try:
            self.look()
            self.future.set_result(self.task(self.look))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold arrays, and an error may live long
            self.future.set_exception(error)
