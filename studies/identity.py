"""Does it help that a DiT with adaLN-Zero starts as the identity?

    python -m studies.identity            three to five minutes on two CPU cores: 24 short runs
    python -m studies.identity --full     six to eight

Claim: with adaLN-Zero each block starts as the identity and the network as output = x, and therefore learns faster.

It is compared, always without warm-up, with gates that start at 1 (an ordinary transformer), gates that start small and
random (the modulation's weights are N(0, 0.02²)), and gates of 1 with the last matrix of each branch divided by √(2L).
Stability without warm-up is the subject of another study: ``python -m studies.conditioning``.

Expect: blocks are the identity to the last bit; the output is 0, not x. At depth 4 networks with gates of 1 are ahead
after the same number of steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import Tensor, nn

from ditlab.config import DiTConfig
from ditlab.core.rng import generator_for
from ditlab.data.circles import circles
from ditlab.evaluation.metrics.discs import VALID_OVERLAP, disc_overlap
from ditlab.inspection.branches import modulated_blocks
from ditlab.networks.conditionings import AdaLNZero
from ditlab.networks.layers import MLP
from ditlab.runs.build import build_dataset, initial_network
from ditlab.runs.folder import RunFolder
from studies.intervals import (
    CONFIRMED,
    CONTRADICTED,
    Measured,
    Verdict,
    below,
    counted,
    curve_over_seeds,
    differences_over_seeds,
    every,
    exact,
    over_seeds,
)
from studies.plots import COLORS, band, key, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Start, Tier, Trained, Workers, base

PART = 0.15  # share of the steps of a whole run
BATCH = 64
HELD_OUT = 2048  # images for measuring the loss
ZERO = "adaLN-Zero"
Cell = dict[str, Any]  # the result of a run


# ---- other starts


def modulations(network: nn.Module) -> list[nn.Linear]:
    """The layers that produce the gates, with six vectors each: shift, scale and gate of both branches."""
    kinds = [block.modulation for block in modulated_blocks(network)]
    assert all(isinstance(kind, AdaLNZero) for kind in kinds)
    return [kind.linear for kind in kinds if isinstance(kind, AdaLNZero)]


@torch.no_grad()
def open_gates(network: nn.Module) -> None:
    """Gates of 1: each branch is added as it is, as in an ordinary transformer."""
    for layer in modulations(network):
        for gate in layer.bias.chunk(6)[2::3]:
            gate.fill_(1)


def small_random(network: nn.Module, seed: int) -> None:
    """Small random modulations: N(0, 0.02²) instead of 0."""
    generator = generator_for(seed, "study of identity")
    for layer in modulations(network):
        nn.init.normal_(layer.weight, std=0.02, generator=generator)


@torch.no_grad()
def scaled(network: nn.Module) -> None:
    """Gates of 1, and branches divided by √(2L), so that their sum does not grow with depth."""
    open_gates(network)
    blocks = modulated_blocks(network)
    for block in blocks:
        assert isinstance(block.mlp, MLP)
        last = block.mlp[-1]
        assert isinstance(last, nn.Linear)
        for layer in (block.attn.out, last):
            layer.weight.div_((2 * len(blocks)) ** 0.5)


STARTS: dict[str, Callable[[int], Start | None]] = {
    ZERO: lambda seed: None,  # noqa: ARG005
    "gates at 1": lambda seed: open_gates,  # noqa: ARG005
    "small random": lambda seed: partial(small_random, seed=seed),
    "1/√(2L)": lambda seed: scaled,  # noqa: ARG005
}
FOLDERS = dict(zip(STARTS, ("zero", "open", "random", "scaled"), strict=True))


# ---- the measurement


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Measure fresh networks, then train all starts without warm-up."""
    cells = list(product(tier.depths, STARTS, tier.seeds))
    names = {cell: f"identity-{FOLDERS[cell[1]]}-{cell[0]}-{cell[2]}" for cell in cells}
    changes: dict[str, Any] = {"steps": tier.share(PART), "warmup_steps": 0, "batch_size": min(BATCH, tier.batch_size)}
    changes["record_every"] = changes["steps"]  # gates belong to another study
    wanted = {
        names[depth, start, seed]: base(tier, seed, network=DiTConfig(depth=depth), **changes)
        for depth, start, seed in cells
    }
    starts = {names[cell]: made for cell in cells if (made := STARTS[cell[1]](cell[2])) is not None}
    runs = workers.train(wanted, starts)
    judged = workers.map(judge, [(runs[names[cell]], tier.samples, tier.solver_steps) for cell in cells])
    seen = {
        (depth, start): [one for one, cell in zip(judged, cells, strict=True) if cell[:2] == (depth, start)]
        for depth, start in product(tier.depths, STARTS)
    }
    fresh = {depth: at_start(tier, depth) for depth in tier.depths}
    findings = [blocks_are_identity(fresh), output_is_x(fresh), *(faster(seen, depth) for depth in tier.depths)]
    return Outcome(findings, [row(*cell, seen[cell]) for cell in seen], curves_of(seen))


def curves_of(seen: dict[tuple[int, str], list[Cell]]) -> dict[str, Any]:
    """Loss over seeds, with its interval, by depth and start, up to the step that all seeds reached."""
    curves: dict[str, Any] = {f"depth {depth}": {} for depth, _ in seen}
    for (depth, start), cells in seen.items():
        last = min(len(one["curve"]) for one in cells)
        loss = curve_over_seeds([one["curve"][:last] for one in cells])
        curves[f"depth {depth}"][start] = {"step": cells[0]["step"][:last], "loss": loss}
    return curves


def row(depth: int, start: str, cells: list[Cell]) -> dict[str, Any]:
    """One start at one depth."""
    return {
        "depth": depth,
        "start": start,
        "loss": str(of(cells, "loss")),
        "valid": str(over_seeds([one["valid"] for one in cells], share=True)),
        "skipped steps": sum(one["skipped"] for one in cells),
        "ran away": str(counted(sum(one["failed"] for one in cells), len(cells))),
        "largest gradient": f"{max(one['gradient'] for one in cells):.3g}",
    }


def of(cells: list[Cell], what: str) -> Measured:
    """A figure for one start at one depth, over seeds."""
    return over_seeds([one[what] for one in cells])


@torch.no_grad()
def at_start(tier: Tier, depth: int) -> dict[str, float]:
    """How far a fresh network and its blocks are from the identity; the largest over seeds."""
    worst = {"blocks": 0.0, "output": 0.0, "output less x": 0.0}
    for seed in tier.seeds:
        config = base(tier, seed, network=DiTConfig(depth=depth))
        network = initial_network(config, build_dataset(config)).eval()
        moved: list[float] = []

        def compare(_: nn.Module, given: tuple[Any, ...], output: Tensor, moved: list[float] = moved) -> None:
            moved.append(float((output - given[0]).abs().max()))

        for block in modulated_blocks(network):
            block.register_forward_hook(compare)
        x = torch.randn(tier.images, 1, 16, 16, generator=generator_for(seed, "study of identity", "x"))
        output = network(x, torch.linspace(0, 1, tier.images), None)
        assert len(moved) == depth
        found = {
            "blocks": max(moved),
            "output": float(output.abs().max()),
            "output less x": float((output - x).square().mean().sqrt() / x.square().mean().sqrt()),
        }
        worst = {each: max(worst[each], found[each]) for each in worst}
    return worst


@torch.no_grad()
def judge(trained: Trained, samples: int, solver_steps: int) -> Cell:
    """Loss on held-out images, validity of samples, and how smoothly it trained.

    A run that diverged counts as a network whose output is 0, as before training.
    """
    lines = RunFolder(trained.folder).read_metrics()
    x0 = circles(HELD_OUT, generator_for(0, "study of identity", "held out")).images
    cell: Cell = {
        "skipped": sum("skipped" in line for line in lines),
        "failed": trained.failed is not None,
        "gradient": max((line["grad_norm"] for line in lines if "grad_norm" in line), default=0.0),
        "step": list(trained.losses()),
        "curve": list(trained.losses().values()),
    }
    if trained.failed is not None:
        nothing = float(x0.square().mean()) + 1  # of the target ε − x0
        return cell | {"loss": nothing, "valid": 0.0}
    run = trained.load()
    losses = run.process.losses(x0, generator=generator_for(0, "study of identity", "noise"))
    drawn = run.sample(samples, steps=solver_steps)
    return cell | {"loss": float(losses.mean()), "valid": float((disc_overlap(drawn) >= VALID_OVERLAP).float().mean())}


# ---- what follows


def blocks_are_identity(fresh: dict[int, dict[str, float]]) -> Finding:
    """Are blocks the identity, to the last bit?"""
    figures = {f"largest change of a token, depth {depth}": exact(each["blocks"]) for depth, each in fresh.items()}
    return Finding(
        claim="Each block starts as the identity on its tokens.",
        measurement="Largest difference between what a block of a fresh network gives and gets, noise as input.",
        verdict=is_zero(figures),
        reason=f"the largest difference is {max(figure.value for figure in figures.values()):.3g}",
        figures=figures,
    )


def output_is_x(fresh: dict[int, dict[str, float]]) -> Finding:
    """Is the output x? It is 0."""
    figures = {f"output less x over x, depth {depth}": exact(each["output less x"]) for depth, each in fresh.items()}
    output = max(each["output"] for each in fresh.values())
    return Finding(
        claim="The whole network starts as output = x.",
        measurement="Root mean square of output − x over that of x, of fresh networks; noise as input.",
        verdict=is_zero(figures),
        reason=f"the largest output is {output:.3g}, so that it misses x by {max(figures.values()).value:.3g} of it: "
        "tokens pass unchanged, and the last linear layer starts at zero",
        figures=figures,
    )


def is_zero(figures: dict[str, Measured]) -> Verdict:
    """Whether all values are zero."""
    return CONFIRMED if all(figure.value == 0 for figure in figures.values()) else CONTRADICTED


def faster(seen: dict[tuple[int, str], list[Cell]], depth: int) -> Finding:
    """Is the loss lower than with every other start, after as many steps?"""
    losses = {start: [one["loss"] for one in seen[depth, start]] for start in STARTS}
    others = [start for start in STARTS if start != ZERO]
    less = {start: differences_over_seeds(losses[ZERO], losses[start], len(others)) for start in others}
    return Finding(
        claim=f"At depth {depth}, without warm-up, adaLN-Zero learns faster than every other start.",
        measurement=f"Loss of the averaged weights on {HELD_OUT:,} held-out images after the same steps (those of the "
        "recipe but for the warm-up), less that of the other start, seed by seed.",
        verdict=every(below(figure, 0) for figure in less.values()),
        reason=f"its loss is {over_seeds(losses[ZERO])}; that is "
        + ", ".join(f"{each.value:+.4f} ({each.low:+.4f} to {each.high:+.4f}) beside {s}" for s, each in less.items()),
        figures={f"loss of {start}": over_seeds(losses[start]) for start in STARTS}
        | {f"loss less that of {start}": figure for start, figure in less.items()},
    )


def draw(told: dict[str, Any]) -> Figure:
    """Loss against steps: one line per start with a band for its interval, one plot per depth."""
    curves = told["curves"]
    figure, plots = page("Four starts, trained without warm-up; bands: 95 % over seeds", len(curves))
    for axes, (depth, lines) in zip(plots, curves.items(), strict=True):
        losses = [value for line in lines.values() for value in line["loss"]["value"]]
        for shade, (start, line) in zip(COLORS, lines.items(), strict=False):
            width = 2.4 if start == ZERO else 1.3
            band(axes, line["step"], line["loss"], shade, label=start, linewidth=width)
        axes.set_yscale("log")
        axes.set_ylim(0.9 * min(losses), 1.1 * max(losses))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.tick_params(axis="y", which="both", labelsize=8)
        name(axes, f"loss in training, {depth}, mean of seeds", "step")
        key(axes)
    return figure


STUDY = Study(
    "identity",
    "With adaLN-Zero each block starts as the identity and the network as output = x, and it learns faster than with "
    "other starts.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
