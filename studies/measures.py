"""Measurements shared by several studies: held-out loss, quality of circles, smoothness of training, cost of a step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ditlab.config import Config
from ditlab.core.registry import SOLVERS
from ditlab.core.rng import generator_for
from ditlab.data.dataset import HeldOut
from ditlab.evaluation.evaluate import evaluate
from ditlab.machine.resolve import resolved
from ditlab.networks.costs import multiply_accumulates, on_meta, parameter_count
from ditlab.runs.build import build_dataset, build_network
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run, load
from ditlab.training.loop import SETTLED, TrainState, train
from studies.intervals import Measured
from studies.training import Tier

HELD_OUT = 8  # times a tier's images, for measuring the loss
EVALUATIONS = 25  # of Heun's method for the circles that are judged, unless the study varies them
Name = TypeVar("Name")
Value = TypeVar("Value")
WORST = 10.0  # predicting 0 scores 1.95; larger or non-finite losses have no mean over seeds
TIMED = 20  # steps of training, after it has settled
BEFORE, JUMP = 20, 1.5  # a jump is a loss of JUMP times the median of the BEFORE losses before it


def held_out_loss(run: Run, count: int) -> float:
    """Mean loss of the averaged weights on held-out data.

    The images, their times (one in the middle of each ``count``-th of [0, 1]) and their noise are the same for every
    run, so two runs differ only in what they learned.
    """
    dataset = build_dataset(run.config)
    assert isinstance(dataset, HeldOut)
    x0, cond = dataset.held_out(0, count)
    generator = generator_for(0, "studies", "held-out loss")
    times = (torch.arange(len(x0)) + 0.5) / len(x0)
    times = times[torch.randperm(len(x0), generator=generator)]
    with torch.no_grad():
        pieces = [
            run.process.losses(
                x0[i : i + 256],
                {name: value[i : i + 256] for name, value in cond.items()},
                generator=generator,
                t=times[i : i + 256],
            )
            for i in range(0, len(x0), 256)
        ]
    return float(torch.cat(pieces).double().mean())


def steps_within(solver: str, evaluations: int) -> int:
    """The most steps of a solver within the given number of evaluations; at least one."""
    count = SOLVERS[solver]().evaluations
    return max((steps for steps in range(1, evaluations + 1) if (count(steps) or 0) <= evaluations), default=1)


def drawn(folder: Path, samples: int, solver: str, evaluations: int, seed: int = 0) -> dict[str, float]:
    """The figures of ``ditlab eval`` for samples drawn with at most the given number of evaluations."""
    steps = steps_within(solver, evaluations)
    figures = evaluate(load(folder, device="cpu"), samples, seed=seed, solver=solver, steps=steps)
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}


def quality(folder: Path, tier: Tier) -> dict[str, float]:
    """The held-out loss of a run and the figures of its samples."""
    return {"loss": loss_of(folder, tier)} | drawn(folder, tier.samples, "heun", EVALUATIONS)


def loss_of(folder: Path, tier: Tier) -> float:
    """The held-out loss of the run in a folder; at most ``WORST``, for a network that diverged."""
    loss = held_out_loss(load(folder, device="cpu"), HELD_OUT * tier.images)
    return min(loss, WORST) if math.isfinite(loss) else WORST


def told(figures: Mapping[str, Measured]) -> str:
    """Figures in one line."""
    return "; ".join(f"{label}: {figure}" for label, figure in figures.items())


def by_name(names: Sequence[Name], tier: Tier, values: Sequence[Value]) -> dict[Name, list[Value]]:
    """Values by name, from a list that goes name by name and seed by seed."""
    each = len(tier.seeds)
    return {name: list(values[i * each : (i + 1) * each]) for i, name in enumerate(names)}


class Smoothness(NamedTuple):
    """How smoothly a training went, if every step was logged.

    Attributes:
        skipped: steps skipped for a spike or a non-finite number.
        jumps: steps whose loss is 1.5 times the median of the 20 before it, or more.
        tail: the 99th percentile of the gradient's norm over its median.
    """

    skipped: int
    jumps: int
    tail: float


def smoothness(folder: Path) -> Smoothness:
    """The smoothness of the training in a run folder."""
    lines = RunFolder(folder).read_metrics()
    norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
    return Smoothness(
        skipped=sum("skipped" in line for line in lines),
        jumps=count_jumps([line["loss"] for line in lines if "loss" in line]),
        tail=float(np.quantile(norms, 0.99) / np.median(norms)),
    )


def count_jumps(losses: Sequence[float]) -> int:
    """How many losses are ``JUMP`` times the median of the ``BEFORE`` ones before them, or more."""
    return sum(losses[i] >= JUMP * float(np.median(losses[i - BEFORE : i])) for i in range(BEFORE, len(losses)))


class Cost(NamedTuple):
    """Parameters of a network, and multiply-accumulates of a forward pass of one image."""

    parameters: int
    products: int

    def training(self, images: int) -> float:
        """Floating-point operations of training on so many images: two per product; backward passes count twice."""
        return 3.0 * 2.0 * self.products * images


def cost(config: Config) -> Cost:
    """The cost of a configuration's network, counted without building it."""
    dataset = build_dataset(config)
    network = on_meta(lambda: build_network(config, dataset))
    return Cost(parameter_count(network), multiply_accumulates(network, dataset.shape))


def cpu_of_step(config: Config) -> float:
    """Processor seconds of one training step, as the median of several; other work on the machine does not count."""
    config = resolved(config).model_copy(update={"steps": SETTLED + TIMED})
    dataset = build_dataset(config)
    clock = [time.process_time() for _ in train(TrainState(config, dataset), dataset)]
    return float(np.median(np.diff(clock[SETTLED:])))


def short(**changes: Any) -> dict[str, Any]:
    """Settings for runs that are only measured at the end: nothing is drawn or recorded on the way."""
    steps = changes["steps"]
    return {"record_every": steps, "checkpoint_every": steps, "sampling": {"steps": 1, "solver": "euler"}} | changes
