"""The networks of the studies: run folders that ``ditlab.train`` trains, in as many one-thread processes as cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ditlab.config import Config, SamplingConfig
from ditlab.core.errors import InputError, Interrupted, TrainingError
from ditlab.machine.resolve import resolved
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run, load
from ditlab.train import fit
from ditlab.training.checkpointer import CheckpointWriter
from ditlab.training.loop import TrainState

Start = Callable[[nn.Module], object]  # changes the initial weights of a training


@dataclass(frozen=True)
class Tier:
    """The budget of a study.

    Attributes:
        name: of the folders of runs and results.
        steps: of a training run at the recipe's full length; ``share`` gives parts of it.
        seeds: of runs that differ only in the seed.
        samples: number drawn to judge samples.
        images: number used to measure attention or predictions.
        batch_size: of a training step.
        solver_steps: of Heun's method, for drawing samples.
        depths: of networks compared by depth.
    """

    name: str
    steps: int
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 500
    images: int = 64
    batch_size: int = 128
    solver_steps: int = 25
    depths: tuple[int, ...] = (4, 12)

    def share(self, part: float) -> int:
        """The given share of the steps of a whole run, at least one."""
        return max(1, round(part * self.steps))


SMOKE = Tier("smoke", steps=4, seeds=(0, 1), samples=8, images=4, batch_size=8, solver_steps=2, depths=(2,))
QUICK = Tier("quick", steps=1200)
FULL = Tier("full", steps=4000, samples=1000, images=256)


def base(tier: Tier, seed: int, **changes: Any) -> Config:
    """The recipe of circles with the tier's steps, which several studies use, unchanged or with one change.

    Args:
        tier, seed: which.
        changes: fields of ``Config``; ``steps`` among them sets how often things are recorded.
    """
    steps = changes.get("steps", tier.steps)
    settings = {
        "seed": seed,
        "steps": steps,
        "device": "cpu",
        "compile": False,  # one thread each, and many short runs
        "batch_size": tier.batch_size,
        "sampling": SamplingConfig(steps=tier.solver_steps),
        "averages": (),
        "log_every": max(1, steps // 40),
        "record_every": max(1, steps // 40),
        "preview_every": steps,
        "checkpoint_every": max(1, -(-steps // 4)),
        "keep_last": 2,
    }
    return Config.model_validate(dict(RECIPES["circles"]()) | settings | changes)


class Trained(NamedTuple):
    """A finished run; ``failed`` says why it ended early, for example because it diverged."""

    folder: Path
    seconds: float  # of training
    failed: str | None = None

    def load(self) -> Run:
        """The averaged weights; for a failed run, the last ones saved."""
        return load(self.folder, device="cpu")

    def losses(self) -> dict[int, float]:
        """The mean loss since the previous line, by step."""
        return {line["step"]: line["loss"] for line in RunFolder(self.folder).read_metrics() if "loss" in line}


class Stopped(Exception):
    """Ctrl-C was pressed; the training so far is saved."""


class Workers:
    """Processes of one thread each.

    Args:
        runs: the folder that runs go into.
        count: of processes; None for one per core, 0 for only this one.
        say: called with a message for each finished run.
    """

    def __init__(self, runs: Path, count: int | None = None, say: Callable[[str], object] = print) -> None:
        self.runs, self.say = runs, say
        self.count = available_cores() if count is None else count
        self.trained: dict[str, Trained] = {}

    def train(self, wanted: Mapping[str, Config], starts: Mapping[str, Start] | None = None) -> dict[str, Trained]:
        """Train the missing runs, each in the folder of its name.

        Args:
            wanted: configurations by name.
            starts: for some of them, a module-level function that changes the fresh weights before the first step.

        Raises:
            InputError: a run of that name was trained with other settings.
            Stopped: Ctrl-C came.
        """
        starts = starts or {}
        jobs = [(name, self.runs / name, config, starts.get(name)) for name, config in wanted.items()]
        for name, trained in self._as_done(_train_one, jobs):
            self.trained[name] = trained
            why = f": {trained.failed}" if trained.failed else ""
            self.say(f"  {trained.folder}: {wanted[name].steps:,} steps, {trained.seconds:.0f} s of training{why}")
        return {name: self.trained[name] for name in wanted}

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """``function(*arguments[i])`` for each i, in order; a module's own function."""
        jobs = [(index, function, *each) for index, each in enumerate(arguments)]
        done = dict(self._as_done(_call, jobs))
        return [done[index] for index in range(len(jobs))]

    def _as_done(self, function: Callable[..., Any], jobs: list[Any]) -> Iterator[Any]:
        if self.count == 0:
            yield from (function(*job) for job in jobs)
            return
        with self._pool() as pool:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()

    @contextmanager
    def _pool(self) -> Iterator[ProcessPoolExecutor]:
        pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), initializer=_begin_worker)
        try:
            yield pool
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()  # training finishes its step, and saves
            raise Stopped from None
        finally:
            pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Told:
    """Settings of a worker process."""

    to_stop = False


def _stop(*_: object) -> None:
    _Told.to_stop = True


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _stop)  # during training, training handles it
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches only the parent, which stops each child once: a second signal kills


def _call(index: int, function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    if _Told.to_stop:
        raise KeyboardInterrupt
    return index, function(*arguments)


def _train_one(name: str, path: Path, config: Config, start: Start | None) -> tuple[str, Trained]:
    """Train a run to its end, resuming if it was started; a finished run stays as it is."""
    if _Told.to_stop:  # the next run was already queued in this process
        raise KeyboardInterrupt
    folder = RunFolder(path)
    config = resolved(config).model_copy(update={"threads": torch.get_num_threads()})
    if folder.config_file.exists() and folder.read_config() != config:
        raise InputError(f"{path} was trained with other settings: remove it, and run the study again")
    failed = None
    try:
        if not folder.config_file.exists() or folder.whole_step != config.steps:
            if start is not None and folder.step is None:
                _save_start(folder, config, start)
            fit(config, folder, watcher=Quiet(), resume=True)
    except TrainingError as error:
        failed = str(error)
    except Interrupted:
        _stop()
        raise KeyboardInterrupt from None
    metrics = folder.read_metrics()
    return name, Trained(path, metrics[-1]["seconds"] if metrics else 0.0, failed)


def _save_start(folder: RunFolder, config: Config, start: Start) -> None:
    """Write a checkpoint of step 0 with changed weights, from which training resumes as from any other."""
    state = TrainState(config, build_dataset(config))
    start(state.network)
    state.ema.network.load_state_dict(state.network.state_dict())
    with folder.locked():
        folder.write_config(config)
        with CheckpointWriter(folder.checkpoints, state) as writer:
            writer.save()


class Quiet:
    """A watcher of training that prints nothing, since the runs of a pool would print at once."""

    def begin(self, done: int, steps: int) -> None:
        """Nothing."""

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        """Nothing."""

    def notice(self, message: str) -> None:
        """Nothing."""


def elapsed(begun: float) -> float:
    """Seconds since ``time.perf_counter()`` returned ``begun``."""
    return round(time.perf_counter() - begun, 1)
