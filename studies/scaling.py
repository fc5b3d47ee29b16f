"""Does the held-out loss of a DiT fall along one line with compute, however the compute is spent?

    python -m studies.scaling            about two minutes on two CPU cores
    python -m studies.scaling --full     about eight

Claim: a DiT scales along clean lines in depth and width.
Expect: at one patch size the loss falls with compute and a power law with a floor describes it; across patch sizes the
same compute gives different losses, for smaller patches leave fewer pixels to each token.

Circles, the same steps, batches, data, noise and learning rate for all (how much another learning rate would give is
measured at the smallest and the largest network). Compute is what training took: steps × batch × three times the
multiply-accumulates of a forward pass × 2. A toy of 16×16 pixels and networks of 20 thousand to a million parameters
say whether there is a line over two decades of compute, and not which exponent ImageNet has: the floor here is the
noise that no network can predict.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ditlab.config import Config, DiTConfig
from studies.intervals import Measured, above, differences_over_seeds, every, exact
from studies.measures import cost, loss_of, short, told
from studies.plots import COLORS, FAINT, key, name, page
from studies.powerlaw import fit_power_law, intervals
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Workers, base

CLEAN = 0.9  # share of the variance of the losses that a clean line explains
LR = 4e-3  # the recipe's
PART = 0.15  # of a whole run


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
    """Train all sizes at two seeds, and fit."""
    seeds = tier.seeds[:2]
    wanted = {(size, seed, LR): config_of(tier, seed, size) for size in SIZES for seed in seeds}
    wanted |= {(size, seeds[0], lr): config_of(tier, seeds[0], size, lr) for size in ENDS for lr in TRIED}
    trained = workers.train({run_name(size, seed, lr): config for (size, seed, lr), config in wanted.items()})
    folders = [trained[run_name(*each)].folder for each in wanted]
    losses = dict(zip(wanted, workers.map(loss_of, [(folder, tier) for folder in folders]), strict=True))
    loss = {size: [losses[size, seed, LR] for seed in seeds] for size in SIZES}
    mean = {size: float(np.mean(loss[size])) for size in SIZES}
    compute = {size: operations(tier, size) for size in SIZES}
    better = {size: mean_gain(losses, size, seeds[0]) for size in ENDS}
    findings = [line(compute, mean), either(loss), however_spent(compute, mean)]
    findings[0].figures.update({f"gain of another learning rate, {label(size)}": better[size] for size in ENDS})
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
    """In words."""
    return f"width {size.dim}, depth {size.depth}, patch {size.patch}"


def mean_gain(losses: dict[tuple[Size, int, float], float], size: Size, seed: int) -> Measured:
    """By how much the best of three learning rates is better than the recipe's, at one seed."""
    return exact(losses[size, seed, LR] - min(losses[size, seed, lr] for lr in (LR, *TRIED)))


def line(compute: dict[Size, float], loss: dict[Size, float]) -> Finding:
    """Is the loss of widths × depths a power law of compute?"""
    figures = intervals([compute[size] for size in AT_FOUR], [loss[size] for size in AT_FOUR])
    return Finding(
        claim="In depth and width, the loss of a DiT falls along a clean line with compute.",
        measurement="L∞ + a·C^−b fitted to the held-out losses of 3 widths × 3 depths at patch size 4: the share of "
        f"their variance that it explains, {CLEAN:g} at least. Beside it, what a halved or doubled learning rate gives "
        "at both ends.",
        verdict=above(figures["r2"], CLEAN),
        reason=told({"r²": figures["r2"], "b": figures["exponent"], "L∞": figures["floor"]}),
        figures=figures,
    )


def either(loss: dict[Size, list[float]]) -> Finding:
    """Does each step in width, and each in depth, lower the loss?"""
    figures: dict[str, Measured] = {}
    for small, large in ((32, 64), (64, 96)):
        pairs = [(Size(small, depth, 4), Size(large, depth, 4)) for depth in (2, 4, 8)]
        figures[f"width {small} to {large}"] = gain(loss, pairs)
    for shallow, deep in ((2, 4), (4, 8)):
        pairs = [(Size(dim, shallow, 4), Size(dim, deep, 4)) for dim in (32, 64, 96)]
        figures[f"depth {shallow} to {deep}"] = gain(loss, pairs)
    return Finding(
        claim="Both more width and more depth lower the loss.",
        measurement="By how much each step in width lowers the held-out loss, over depths and seeds; each step in "
        "depth, over widths and seeds.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=told(figures),
        figures=figures,
    )


def gain(loss: dict[Size, list[float]], pairs: list[tuple[Size, Size]]) -> Measured:
    """The mean of the differences, pair by pair and seed by seed."""
    before = [value for small, _ in pairs for value in loss[small]]
    after = [value for _, large in pairs for value in loss[large]]
    figure = differences_over_seeds(before, after)
    return figure._replace(interval=f"t over {len(before)} pairs of runs")


def however_spent(compute: dict[Size, float], loss: dict[Size, float]) -> Finding:
    """Do other patch sizes lie on the same line?"""
    figures = intervals([compute[size] for size in SIZES], [loss[size] for size in SIZES])
    return Finding(
        claim="It does not matter whether compute is spent on width, depth or smaller patches.",
        measurement="L∞ + a·C^−b fitted to the held-out losses of all sizes, patch sizes 2, 4 and 8 together: the "
        f"share of their variance that it explains, {CLEAN:g} at least.",
        verdict=above(figures["r2"], CLEAN),
        reason=told({"r²": figures["r2"], "b": figures["exponent"], "L∞": figures["floor"]}),
        figures=figures,
    )


def draw(result: dict[str, Any]) -> Figure:
    """Loss against compute: a line a depth, and the fit."""
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
