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
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ditlab.config import Config
from ditlab.data.datasets import Batch, Dataset
from ditlab.errors import ConfigError, InputError, TrainingError
from ditlab.training import signals, stacks

AHEAD = 2  # batches a worker prepares ahead
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process gets when its parent ends
STARTING = 60.0  # seconds more that workers have for the first batch: each imports torch, perhaps all on one core

_dataset: Dataset  # in a worker
_seed: int
_size: int


def batches(dataset: Dataset, config: Config, begin: int, folder: Path | None = None) -> Generator[Batch, None, None]:
    """The batches of the steps from ``begin`` (from 0) to ``config.steps``, as ``dataset.batch`` gives them.

    Args:
        dataset: is sent to the workers, where there are any.
        config: ``seed``, ``batch_size``, ``steps``, ``workers`` and ``stall_after`` are used.
        begin: the first step.
        folder: where to leave the stacks of a worker that hangs.

    Raises:
        InputError, ConfigError, OSError: as the dataset raised it.
        TrainingError: a worker died, gave nothing for ``stall_after`` seconds, or failed otherwise.
    """
    if config.workers == 0:
        for step in range(begin, config.steps):
            yield dataset.batch(config.seed, step * config.batch_size, config.batch_size)
        return
    workers = Workers(dataset, config, folder)
    waiting: deque[Future[Batch]] = deque()
    try:
        for step in range(begin, config.steps):
            while len(waiting) <= AHEAD * config.workers and step + len(waiting) < config.steps:
                waiting.append(workers.prepare(step + len(waiting)))
            yield workers.result(waiting.popleft())
    finally:
        workers.close()


class Workers:
    """Processes that prepare batches.

    They are spawned, not forked: a fork of a process with threads (torch's own, one that saves a checkpoint) may wait
    for ever for a lock that one of them held, and cannot use CUDA. They ignore Ctrl-C and SIGTERM, which are the
    training process's to answer, and end with it, however it ends.
    """

    def __init__(self, dataset: Dataset, config: Config, folder: Path | None) -> None:
        self.config, self.folder = config, folder
        self.processes: list[BaseProcess] = []
        self.starting = STARTING
        arguments = (dataset, config.seed, config.batch_size, folder)
        self.pool = ProcessPoolExecutor(
            config.workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=arguments
        )

    def prepare(self, step: int) -> Future[Batch]:
        """The promise of a step's batch."""
        if len(self.processes) == self.config.workers:
            return self.pool.submit(_prepare, step)
        before = set(multiprocessing.active_children())
        with signals.blocked():
            promise = self.pool.submit(_prepare, step)
        for process in set(multiprocessing.active_children()) - before:
            stacks.call_worker(process)
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
            where = "" if self.folder is None else f": {stacks.write_stacks(self.folder, message)} shows where they are"
            raise TrainingError(f"{message}{where}; try --workers 0") from None
        except BrokenProcessPool:
            raise TrainingError(
                f"a worker process died while it prepared batches, perhaps for want of memory: try --workers "
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
            stacks.clear(self.folder)


def _begin(dataset: Dataset, seed: int, size: int, folder: Path | None) -> None:
    """In a worker, at first."""
    global _dataset, _seed, _size
    _dataset, _seed, _size = dataset, seed, size
    signals.ignore()
    if sys.platform == "linux":  # also where a worker holds its interpreter
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if folder is not None:
        stacks.answer_in(folder)
    torch.set_num_threads(1)


def _prepare(step: int) -> Batch:
    """In a worker: the batch of a step."""
    try:
        return _dataset.batch(_seed, step * _size, _size)
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
