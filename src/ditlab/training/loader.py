"""Batches in the order of the steps, prepared here or ahead in worker processes.

A batch is a function of (seed, position), so that who prepares it changes nothing: a worker is given the number of a
step and returns the whole batch, through shared memory.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ditlab.config import Config
from ditlab.core.distributed import ALONE, Ranks
from ditlab.core.errors import ConfigError, InputError, TrainingError
from ditlab.data.dataset import Batch, Dataset, share_of_batch
from ditlab.training import signals
from ditlab.training.watchdog import answer_in, call_worker, clear, write_stacks

AHEAD = 2  # batches a worker prepares ahead
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process gets when its parent ends
STARTING = 60.0  # seconds more that workers have for the first batch: each imports torch, perhaps all on one core

_batch: Callable[[int], Batch]  # in a worker: that of a step


def batches(
    dataset: Dataset, config: Config, begin: int, folder: Path | None = None, ranks: Ranks = ALONE
) -> Generator[Batch, None, None]:
    """The batches of the steps from ``begin`` (from 0) to ``config.steps``, or this process's shares of them.

    Args:
        dataset: is sent to the workers, where there are any.
        config: ``seed``, ``batch_size``, ``steps``, ``workers`` and ``stall_after`` are used.
        begin: the first step.
        folder: where to leave the stacks of a worker that hangs.
        ranks: the processes that train together.

    Raises:
        InputError, ConfigError, OSError: as the dataset raised it.
        TrainingError: a worker died, gave nothing for ``stall_after`` seconds, or failed otherwise.
    """
    batch_of = BatchOf(dataset, config.seed, config.batch_size, ranks.rank, ranks.world)
    if config.workers == 0:
        for step in range(begin, config.steps):
            yield batch_of(step)
        return
    workers = Workers(batch_of, config, folder)
    waiting: deque[Future[Batch]] = deque()
    try:
        for step in range(begin, config.steps):
            while len(waiting) <= AHEAD * config.workers and step + len(waiting) < config.steps:
                waiting.append(workers.prepare(step + len(waiting)))
            yield workers.result(waiting.popleft())
    finally:
        workers.close()


@dataclass(frozen=True)
class BatchOf:
    """A process's share of the batch of a step, from 0."""

    dataset: Dataset
    seed: int
    size: int
    rank: int
    world: int

    def __call__(self, step: int) -> Batch:
        return share_of_batch(self.dataset, self.seed, step * self.size, self.size, self.rank, self.world)


class Workers:
    """Processes that prepare batches.

    They are spawned, not forked: a fork of a process with threads (torch's own, one that saves a checkpoint) may wait
    for ever for a lock that one of them held, and cannot use CUDA. They ignore Ctrl-C and SIGTERM, which are the
    training process's to answer, and end with it, however it ends.
    """

    def __init__(self, batch_of: BatchOf, config: Config, folder: Path | None) -> None:
        self.config, self.folder = config, folder
        self.processes: list[BaseProcess] = []
        self.starting = STARTING
        self.pool = ProcessPoolExecutor(
            config.workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(batch_of, folder)
        )

    def prepare(self, step: int) -> Future[Batch]:
        """The promise of a step's batch."""
        if len(self.processes) == self.config.workers:
            return self.pool.submit(_prepare, step)
        before = set(multiprocessing.active_children())
        with signals.blocked():
            promise = self.pool.submit(_prepare, step)
        for process in set(multiprocessing.active_children()) - before:
            call_worker(process)
            self.processes.append(process)
        return promise

    def result(self, promise: Future[Batch]) -> Batch:
        """The batch, once it is there."""
        limit = self.config.stall_after
        try:
            batch = promise.result(min(limit + self.starting, threading.TIMEOUT_MAX))
        except TimeoutError:
            if promise.done():  # the data set's own
                raise
            message = f"no batch came from the worker processes for {limit:g} s"
            where = "" if self.folder is None else f": {write_stacks(self.folder, message)} shows where they are"
            raise TrainingError(f"{message}{where}; try --workers 0") from None
        except BrokenProcessPool:
            raise TrainingError(
                f"a worker process died while it prepared batches; it may have run out of memory. Try --workers "
                f"{self.config.workers // 2}, or a smaller --batch-size"
            ) from None
        self.starting = 0.0
        return batch

    def close(self) -> None:
        """End the processes, without waiting for what they are at: they only read."""
        for process in self.processes:
            process.kill()
        self.pool.shutdown(cancel_futures=True)
        if self.folder is not None:
            clear(self.folder)


def _begin(batch_of: BatchOf, folder: Path | None) -> None:
    """In a worker, at first."""
    global _batch
    _batch = batch_of
    signals.ignore()
    if sys.platform == "linux":  # also where a worker holds its interpreter
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if folder is not None:
        answer_in(folder)
    torch.set_num_threads(1)


def _prepare(step: int) -> Batch:
    """In a worker: the batch of a step."""
    try:
        return _batch(step)
    except (InputError, ConfigError, OSError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise TrainingError(f"no batch for step {step + 1}: {said}; --workers 0 shows where it comes from") from error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
