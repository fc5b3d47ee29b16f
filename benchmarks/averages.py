"""How well averages made from snapshots agree with those tracked directly, and what tracking costs.

    ditlab train circles --name widths --averages 0.05 0.1 0.02 0.03 0.04 0.08 0.15 0.2 0.25 0.28 --average-every 63
    python benchmarks/averages.py runs/widths          about a minute on one CPU core

The last checkpoint of that run has every tracked width. The others are also made from snapshots of the first two.
Errors are relative to the norm of the tracked weights, and the largest error is relative to the largest weight.

    python benchmarks/averages.py                      about a minute and a half on one CPU core

Without a run: the error of fp32 averages of long trainings against fp64, relative to the norm of the weights. The
weights are constant for half of the steps, and then drift by 5 % with noise. "each" is one update per step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.bench.training import as_trained
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import read_part, verified
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import tensor_name
from ditlab.training.ema import PowerAverages, exponent, interval
from ditlab.training.loop import TrainState, train
from ditlab.training.posthoc_ema import combine, combined

ROUNDS, STEPS = 60, 4
WEIGHTS, AT_ONCE, WIDTHS = (
    64,
    1000,
    (0.05, 0.1),
)  # for the long trainings: number of weights, steps drawn at a time, widths


def agreement(run: str) -> None:
    """Print a table: one row for each width, one column for each number of snapshots."""
    folder = RunFolder.find(run)
    tracked, wanted = folder.read_config().averages[:2], sorted(folder.read_config().averages)
    steps = folder.snapshot_steps
    last = steps[-1]
    direct = read_part(verified(folder.checkpoints, last), "averages")
    columns: dict[int, list[str]] = {}
    for every in (8, 4, 2, 1):
        chosen = sorted({*steps[every - 1 :: every], last})
        made_of = [combine(width, last, chosen, tracked) for width in wanted]
        averages = combined([folder.snapshot_file(step) for step in chosen], made_of, tracked)
        column = []
        for width, combination, average in zip(wanted, made_of, averages, strict=True):
            own = flat(average)
            exact = flat({name: direct[tensor_name(width, name)] for name in average})
            error = float((own - exact).norm() / exact.norm())
            largest = float((own - exact).abs().max() / exact.abs().max())
            column.append(f"{error:.1e} {largest:.1e} ({combination.expected_error:.1e})")
        columns[len(chosen)] = column
    print(f"made from {tracked}: error, largest (expected)")
    print("| sigma_rel | " + " | ".join(f"{count} snapshots" for count in columns) + " |")
    for i, width in enumerate(wanted):
        print(f"| {width} | " + " | ".join(column[i] for column in columns.values()) + " |")


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """All values, in the order of the names."""
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def cost() -> None:
    """Print the time of training steps on circles with two averages over that without, interleaved."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    config = RECIPES["circles"]().model_copy(update={"precision": "fp32", "device": "cpu"})
    data = build_dataset(config)
    config = as_trained(config, data)
    loops = {}
    for tracking in seconds:
        own = config if tracking else config.model_copy(update={"averages": ()})
        loops[tracking] = train(TrainState(own, data), data)
    for loop in loops.values():  # after both are built: each state that compiles forgets what was compiled before
        for _ in range(10):
            next(loop)
    for turn in range(ROUNDS):
        for tracking in (True, False) if turn % 2 else (False, True):
            begun = time.perf_counter()
            for _ in range(STEPS):
                next(loops[tracking])
            seconds[tracking].append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"a step with two averages takes {statistics.median(ratios):.3f} × one without (standard error {error:.3f})")


def long_trainings() -> None:
    """Print a table: one row for each number of steps, size of the noise and width."""
    print("| steps | noise | sigma_rel | K | each | every K |")
    for steps in (400_000, 1_000_000, 7_000_000):
        for noise in (0.01, 0.001):
            each, sparse = long_training(steps, noise)
            for width in WIDTHS:
                every = interval(steps, exponent(width))
                print(f"| {steps:,} | {noise:g} | {width} | {every} | {each[width]:.1e} | {sparse[width]:.1e} |")


@torch.no_grad()
def long_training(steps: int, noise: float) -> tuple[dict[float, float], dict[float, float]]:
    """Relative errors by width: of fp32 averages updated in each step, and of ours."""
    draw, half = np.random.default_rng(0), steps // 2
    begun = draw.uniform(0.5, 1, WEIGHTS) * draw.choice([-1, 1], WEIGHTS)
    drift = 0.05 * begun * draw.standard_normal(WEIGHTS)
    network = nn.ParameterDict({"w": torch.from_numpy(begun).float()})
    weights, own = network["w"], PowerAverages(network, WIDTHS)
    each = {width: weights.detach().clone() for width in WIDTHS}
    exact = {width: weights.detach().double() for width in WIDTHS}
    for first in range(half, steps, AT_ONCE):
        taken = np.arange(first + 1, first + AT_ONCE + 1)
        moved = drift * ((taken - half) / (steps - half))[:, None] + noise * begun * draw.standard_normal(
            (AT_ONCE, WEIGHTS)
        )
        path = torch.from_numpy(begun + moved).float()
        for width, average in exact.items():
            ends = torch.from_numpy(np.arange(first, first + AT_ONCE + 1) / (first + AT_ONCE)) ** (exponent(width) + 1)
            average.mul_(ends[0]).add_(ends.diff() @ path.double())
        for step, now in zip(taken.tolist(), path, strict=True):
            weights.copy_(now)
            own.update(step)
            for width, average in each.items():
                average.lerp_(now, 1 - (1 - 1 / step) ** (own.exponents[width] + 1))
    sparse = {width: own.state_dict()[tensor_name(width, "w")] for width in WIDTHS}
    errors = [{w: float((found[w] - exact[w]).norm() / exact[w].norm()) for w in WIDTHS} for found in (each, sparse)]
    return errors[0], errors[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="folder of that run, or its name in runs/")
    torch.set_num_threads(1)
    if (chosen := parser.parse_args().run) is None:
        long_trainings()
    else:
        agreement(chosen)
        cost()
