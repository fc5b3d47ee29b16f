"""The queue before the one thread that computes: order, bounds, and clients that leave."""

import asyncio
import gc
import threading
import weakref
from contextlib import suppress

import pytest

from ditlab.lab.server.worker import Busy, Gone, Rank, Worker
from tests.lab.shell import PATIENCE, eventually


async def here():
    return False


@pytest.fixture
def worker():
    worker = Worker(capacity=3)
    yield worker
    worker.close()


class Gate:
    """A job that says when it begins, and ends when it may, or when its client has left."""

    def __init__(self):
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, look):
        self.begun.set()
        while not self.open.wait(0.005):
            look()
        return "through"


async def begin(worker, job, disconnected=here, rank=Rank.LOOK):
    """Start a job, and go on once it runs."""
    task = asyncio.create_task(worker.run(job, disconnected, rank))
    assert await asyncio.to_thread(job.begun.wait, PATIENCE)
    return task


async def queue(worker, job, disconnected=here):
    """Put a job into the queue behind a running one."""
    before = worker.waiting
    task = asyncio.create_task(worker.run(job, disconnected))
    while worker.waiting == before:
        await asyncio.sleep(0)
    return task


def test_result_and_error_come_back(worker):
    def fail(look):
        raise ValueError("no such layer")

    assert asyncio.run(worker.run(lambda look: 42, here)) == 42
    with pytest.raises(ValueError, match="no such layer"):
        asyncio.run(worker.run(fail, here))
    eventually(lambda: worker.waiting == 0)


def test_one_thread_computes_in_order_of_arrival():
    worker, seen = Worker(capacity=100), []

    async def main():
        jobs = [lambda look, i=i: seen.append((i, threading.get_ident())) for i in range(50)]
        await asyncio.gather(*(worker.run(job, here) for job in jobs))

    asyncio.run(main())
    worker.close()
    assert [i for i, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2


def test_a_measurement_lets_clicks_in_between_two_batches(worker):
    seen, measuring = [], Gate()

    def sample(look):
        look()  # a job in between lets in only what comes before itself
        seen.append("drawn")

    async def main():
        task = await begin(worker, measuring, rank=Rank.MEASURE)
        await asyncio.gather(worker.run(sample, here, Rank.DRAW), worker.run(lambda _: seen.append("looked"), here))
        await worker.run(lambda _: seen.append("opened"), here, Rank.OPEN)
        assert seen == ["looked", "drawn", "opened"]
        assert not task.done()
        measuring.open.set()
        assert await task == "through"

    asyncio.run(main())


def test_many_measurements_in_line_turn_no_click_away(worker):
    async def main():
        gate = Gate()
        tasks = [await begin(worker, gate, rank=Rank.MEASURE)]
        tasks += [asyncio.create_task(worker.run(lambda _: 0, here, Rank.MEASURE)) for _ in range(3)]
        while worker.waiting < 4:
            await asyncio.sleep(0)
        assert await worker.run(lambda _: "at once", here) == "at once"
        gate.open.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_measurement_whose_client_left_stops_after_what_it_let_in(worker):
    async def main():
        left = asyncio.Event()

        async def disconnected():
            return left.is_set()

        task = await begin(worker, Gate(), disconnected, Rank.MEASURE)
        click = Gate()
        clicked = await begin(worker, click)
        left.set()
        with pytest.raises(Gone):
            await task
        click.open.set()
        assert await clicked == "through"
        await asyncio.to_thread(eventually, lambda: worker.waiting == 0)

    asyncio.run(main())


def test_full_queue_says_so_at_once(worker):
    async def main():
        gate = Gate()
        tasks = [await begin(worker, gate)]
        tasks += [await queue(worker, lambda look, i=i: i) for i in range(3)]
        assert worker.waiting == 4
        with pytest.raises(Busy, match="try again"):
            await worker.run(lambda look: "never", here)
        gate.open.set()
        assert await asyncio.gather(*tasks) == ["through", 0, 1, 2]
        assert await worker.run(lambda look: "again", here) == "again"

    asyncio.run(main())


def test_job_of_a_client_that_left_is_not_computed_and_frees_its_place(worker):
    async def main():
        gate, left, computed = Gate(), asyncio.Event(), []

        async def disconnected():
            return left.is_set()

        first = await begin(worker, gate)
        leaving = [await queue(worker, computed.append, disconnected) for _ in range(3)]
        left.set()
        for task in leaving:
            with pytest.raises(Gone):
                await task
        assert worker.waiting == 1
        staying = await queue(worker, lambda look: "my turn")
        gate.open.set()
        assert (await first, await staying, computed) == ("through", "my turn", [])

    asyncio.run(main())


@pytest.mark.parametrize("how", ["disconnected", "cancelled", "closed"])
def test_running_job_stops_at_its_next_look(worker, how):
    async def main():
        gate, left = Gate(), asyncio.Event()

        async def disconnected():
            return left.is_set()

        task = await begin(worker, gate, disconnected)
        {"disconnected": left.set, "cancelled": task.cancel, "closed": worker.close}[how]()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else Gone):
            await task
        await asyncio.to_thread(eventually, lambda: worker.waiting == 0)

    asyncio.run(main())


def test_closing_sends_those_in_the_queue_away(worker):
    async def main():
        running = await begin(worker, Gate())
        queued = await queue(worker, lambda look: "never")
        worker.close()
        for task in (running, queued):
            with pytest.raises(Gone):
                await task
        with pytest.raises(Busy):
            await worker.run(lambda look: "never", here)

    asyncio.run(main())


class Big:
    """Stands for an array."""


@pytest.mark.parametrize("end", ["result", "error", "gone"])
def test_nothing_stays_in_memory_after_a_job(worker, end):
    """Without the garbage collector: an error and its frames form a circle, which would keep arrays until it runs."""
    seen = []

    def job(look):
        big = Big()
        seen.append(weakref.ref(big))
        if end == "error":
            raise ValueError("out of memory")
        if end == "gone":
            raise Gone
        return big

    async def main():
        with suppress(ValueError, Gone):
            await worker.run(job, here)

    gc.disable()
    try:
        asyncio.run(main())
        eventually(lambda: worker.waiting == 0)
        eventually(lambda: seen[0]() is None, 2)
    finally:
        gc.enable()
