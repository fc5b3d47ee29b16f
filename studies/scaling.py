"""Does the held-out loss of a DiT fall along one line with compute, however the compute is spent?

    python -m studies.scaling            on all CPU cores; its JSON has the seconds
    python -m studies.scaling --full

Claim: a DiT scales along clean lines in depth and width. Expect: at one patch size the loss follows a power law of
compute with a floor; across patch sizes the same compute gives different losses, because smaller patches leave fewer
pixels to each token.

All networks train on circles with the same steps, batches, data, noise and learning rate (the gain from another
learning rate is measured for the smallest and the largest network). Trainings are a small part of the recipe's, so this
is the loss after a number of steps, not the final loss. A line is clean if the sizes predict one another: each is
predicted from a fit to the others, and the r² of these predictions is at least 0.9. Compute is that of training: steps
× batch × three times the multiply-accumulates of a forward pass × 2. A toy of 16×16 pixels and networks of 36,336 to
1,089,184 parameters can show whether there is a line over a decade and a half of compute, but not the exponent for
ImageNet: the floor here is the noise that no network can predict.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ditlab.config import Config, DiTConfig
from studies.intervals import Measured, above, every, exact, over_seeds
from studies.measures import cost, loss_of, short
from studies.plots import COLORS, FAINT, key, name, page
from studies.powerlaw import fit_power_law, fits_over_seeds
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers, base

CLEAN = 0.9  # smallest r² of left-out sizes for a clean line
LR = 4e-3  # the recipe's
PART = 0.075  # share of a whole run


class Size(NamedTuple):
    """Of a DiT."""

    dim: int
    depth: int
    patch: int


AT_FOUR = [Size(dim, depth, 4) for depth in (8, 4, 2) for dim in (96, 64, 32)]
OTHERS = [Size(64, 4, 2), Size(32, 2, 2), Size(96, 8, 8), Size(64, 4, 8), Size(32, 2, 8)]
SIZES = [OTHERS[0], *AT_FOUR, *OTHERS[1:]]  # the longest ones first
ENDS = Size(32, 2, 4), Size(96, 8, 4)
TRIED = LR / 2, LR * 2  # at both ends


def config_of(tier: Tier, seed: int, size: Size, lr: float = LR) -> Config:
    """The recipe at another size."""
    network = DiTConfig(dim=size.dim, depth=size.depth, patch_size=size.patch)
    return base(tier, seed, network=network, lr=lr, **short(steps=tier.share(PART)))


def run_name(size: Size, seed: int, lr: float = LR) -> str:
    """Of the folder."""
    return f"scaling-dim{size.dim}-depth{size.depth}-patch{size.patch}-lr{lr:g}-seed{seed}"


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train all sizes, and fit."""
    seeds = tier.seeds
    wanted = {(size, seed, LR): config_of(tier, seed, size) for size in SIZES for seed in seeds}
    wanted |= {(size, seeds[0], lr): config_of(tier, seeds[0], size, lr) for size in ENDS for lr in TRIED}
    trained = workers.train({run_name(size, seed, lr): config for (size, seed, lr), config in wanted.items()})
    folders = [trained[run_name(*each)].folder for each in wanted]
    losses = dict(zip(wanted, workers.map(loss_of, [(folder, tier) for folder in folders]), strict=True))
    loss = {size: [losses[size, seed, LR] for seed in seeds] for size in SIZES}
    mean = {size: float(np.mean(loss[size])) for size in SIZES}
    compute = {size: operations(tier, size) for size in SIZES}
    better = {size: mean_gain(losses, size, seeds[0]) for size in ENDS}
    steps = tier.share(PART)
    findings = [line(compute, loss, better, steps), either(loss, steps), however_spent(compute, loss, steps)]
    law = fit_power_law([compute[size] for size in AT_FOUR], [mean[size] for size in AT_FOUR])
    rows = [
        {**size._asdict(), **cost(config_of(tier, 0, size))._asdict(), "operations": compute[size], "loss": mean[size]}
        for size in SIZES
    ]
    return Outcome(findings, rows, {"power law": law._asdict()})


def operations(tier: Tier, size: Size) -> float:
    """Floating-point operations of a whole training."""
    config = config_of(tier, 0, size)
    return cost(config).training(config.steps * config.batch_size)


def label(size: Size) -> str:
    """The size in words."""
    return f"width {size.dim}, depth {size.depth}, patch {size.patch}"


def mean_gain(losses: dict[tuple[Size, int, float], float], size: Size, seed: int) -> Measured:
    """Gain of the best of three learning rates over the recipe's, at one seed."""
    return exact(losses[size, seed, LR] - min(losses[size, seed, lr] for lr in (LR, *TRIED)))


def fitted(compute: dict[Size, float], loss: dict[Size, list[float]], sizes: list[Size]) -> dict[str, Measured]:
    """Power laws fitted to some sizes, seed by seed."""
    by_seed = zip(*(loss[size] for size in sizes), strict=True)
    return fits_over_seeds([compute[size] for size in sizes], list(by_seed))


def line(
    compute: dict[Size, float], loss: dict[Size, list[float]], better: dict[Size, Measured], steps: int
) -> Finding:
    """Is the loss of widths × depths a power law of compute?"""
    figures = fitted(compute, loss, AT_FOUR)
    gains = {f"gain of another learning rate, {label(size)}": better[size] for size in ENDS}
    return Finding(
        claim=f"In depth and width, the loss of a DiT after {steps:,} steps falls along a clean line with compute.",
        measurement="L∞ + a·C^−b fitted to the held-out losses of 3 widths × 3 depths at patch size 4, each size "
        f"predicted from a fit to the others: r² of the predictions, {CLEAN:g} at least. Beside it, by how much half "
        "or twice the learning rate lowers the loss at both ends, at the first seed.",
        verdict=above(figures["left-out r2"], CLEAN),
        reason=f"r² of sizes left out: {figures['left-out r2']}; another learning rate gains "
        f"{max(gain.value for gain in gains.values()):.3g} at most",
        figures=figures | gains,
    )


def either(loss: dict[Size, list[float]], steps: int) -> Finding:
    """Does each step in width, and each in depth, lower the loss?"""
    figures: dict[str, Measured] = {}
    for small, large in ((32, 64), (64, 96)):
        pairs = [(Size(small, depth, 4), Size(large, depth, 4)) for depth in (2, 4, 8)]
        figures[f"width {small} to {large}"] = gain(loss, pairs, 4)
    for shallow, deep in ((2, 4), (4, 8)):
        pairs = [(Size(dim, shallow, 4), Size(dim, deep, 4)) for dim in (32, 64, 96)]
        figures[f"depth {shallow} to {deep}"] = gain(loss, pairs, 4)
    least = min(figures, key=lambda step: figures[step].value)
    return Finding(
        claim=f"Both more width and more depth lower the loss after {steps:,} steps.",
        measurement="By how much each step in width lowers the held-out loss, on average over depths, seed by seed; "
        "each step in depth, on average over widths.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"the least, {least}: {figures[least]}",
        figures=figures,
    )


def gain(loss: dict[Size, list[float]], pairs: list[tuple[Size, Size]], comparisons: int = 1) -> Measured:
    """Gain of the larger networks: the mean over pairs for each seed, then over seeds."""
    gains = [np.subtract(loss[small], loss[large]) for small, large in pairs]
    return over_seeds(np.mean(gains, axis=0).tolist(), comparisons)


def however_spent(compute: dict[Size, float], loss: dict[Size, list[float]], steps: int) -> Finding:
    """Do other patch sizes lie on the same line?"""
    figures = fitted(compute, loss, SIZES)
    return Finding(
        claim=f"After {steps:,} steps it does not matter whether compute went into width, depth or smaller patches.",
        measurement="L∞ + a·C^−b fitted to the held-out losses of all sizes, patch sizes 2, 4 and 8 together, each "
        f"size predicted from a fit to the others: r² of the predictions, {CLEAN:g} at least.",
        verdict=above(figures["left-out r2"], CLEAN),
        reason=f"r² of sizes left out: {figures['left-out r2']}",
        figures=figures,
    )


def draw(result: dict[str, Any]) -> Figure:
    """Loss against compute: one line per depth, and the fit."""
    figure, (by_size, by_patch) = page("Held-out loss against training compute", 2, width=4.6)
    rows, told_law = result["rows"], result["curves"]["power law"]
    for color, depth in zip(COLORS, (2, 4, 8), strict=False):
        points(by_size, [row for row in rows if row["patch"] == 4 and row["depth"] == depth], color, f"depth {depth}")
    spent = [row["operations"] for row in rows if row["patch"] == 4]
    x = np.geomspace(min(spent), max(spent), 100)
    y = told_law["floor"] + told_law["scale"] * (x / told_law["unit"]) ** -told_law["exponent"]
    by_size.plot(x, y, color=FAINT, linestyle="--", linewidth=1, label=f"L∞ + a·C^−b, b = {told_law['exponent']:.2f}")
    name(by_size, "patch size 4, widths 32, 64, 96", "operations of training", "held-out loss")
    for color, patch in zip(COLORS[3:], (8, 4, 2), strict=False):
        points(by_patch, [row for row in rows if row["patch"] == patch], color, f"patch size {patch}", line="")
    name(by_patch, "all sizes", "operations of training", "held-out loss")
    for axes in (by_size, by_patch):
        axes.set_xscale("log")
        key(axes)
    return figure


def points(axes: Any, rows: list[dict[str, Any]], color: str, text: str, line: str = "-") -> None:
    """The losses of some sizes."""
    rows = sorted(rows, key=lambda row: row["operations"])
    x, y = [row["operations"] for row in rows], [row["loss"] for row in rows]
    axes.plot(x, y, color=color, marker="o", markersize=4, linestyle=line, linewidth=1, label=text)


STUDY = Study("scaling", "A diffusion transformer scales along clean lines in depth and width.", measure, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY))
