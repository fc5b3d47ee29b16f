"""Data with faults at given steps, and a training of them in a child process as the command line would run it.

python -m tests.reliability.faulty FOLDER '{"config": {...}, "faults": {...}}'
"""

import ctypes
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from ditlab.core.errors import InputError
from ditlab.data.conditions import NO_CONDITIONS
from ditlab.data.dataset import Batch
from ditlab.data.points import Points


class Faulty:
    """Points in the plane. At a step (from 1) of ``faults`` the batch is not what it should be, or does not come."""

    shape = (2,)
    conditions = NO_CONDITIONS

    def __init__(self, faults, diary=None):
        self.faults, self.diary = {int(step): kind for step, kind in faults.items()}, diary
        self.points = Points("moons")

    def batch(self, seed, position, size):
        if self.diary is not None:
            with Path(self.diary).open("a") as stream:
                stream.write(f"{position}\n")
        x0, cond = self.points.batch(seed, position, size)
        kind = self.faults.get(position // size + 1)
        if kind in ("nan", "inf", "huge"):
            x0[3] = {"nan": torch.nan, "inf": torch.inf, "huge": 1e4}[kind]
        elif kind == "everything huge":
            x0 *= 100
        elif kind is not None:
            FAULTS[kind]()
        return Batch(x0, cond)

    def indices(self, seed, position, size):
        return torch.arange(position, position + size) * 7

    def name(self, index):
        return f"point {index}"


def hang():
    time.sleep(1000)


def keep_the_interpreter():
    ctypes.PyDLL(None).sleep(1000)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise InputError("this sample is no good: take another")


def stumble():
    raise ValueError("two\nlines")


FAULTS = {"hang": hang, "keep": keep_the_interpreter, "die": die, "refuse": refuse, "stumble": stumble}


class Told:
    """A watcher that prints each step."""

    def begin(self, done, steps):
        print("begin", done, flush=True)

    def progress(self, step, loss, images_per_s, seconds_left):
        print("step", step, flush=True)

    def notice(self, message):
        print("notice", message, flush=True)


def config(**changes):
    """The recipe for points, made small."""
    from ditlab.recipes import RECIPES

    small = {"steps": 8, "batch_size": 8, "warmup_steps": 2, "log_every": 1, "preview_every": 4, "checkpoint_every": 4}
    made = RECIPES["points"]()
    network = made.network.model_copy(update={"hidden": 16})
    sampling = made.sampling.model_copy(update={"steps": 2})
    return type(made)(**{**dict(made), "network": network, "sampling": sampling, "lr": 0.001, **small, **changes})


def train(arguments):
    """Train; with "again", go on after each interruption, with a worker process every other time."""
    from ditlab.core.errors import Interrupted
    from ditlab.runs.folder import RunFolder
    from ditlab.train import fit

    torch.set_num_threads(1)
    told = json.loads(arguments[1])
    if told.get("prepare"):
        print("preparing", flush=True)
        hang()
    data = Faulty(told.get("faults", {}))
    folder = RunFolder(arguments[0])
    turns = itertools.cycle([0, 1])
    while True:
        workers = {"workers": next(turns)} if told.get("again") else {}
        try:
            fit(config(**told["config"], **workers), folder, data, watcher=Told(), resume=folder.step is not None)
        except Interrupted as stop:
            if not told.get("again"):
                raise
            print("stopped", stop.signal_number, folder.step, flush=True)
        else:
            return 0


if __name__ == "__main__":
    from ditlab.cli.main import guarded

    raise SystemExit(guarded(train, sys.argv[1:]))
