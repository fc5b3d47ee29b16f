"""Which way of telling a transformer the time is best, and which trains without warm-up and when it is deep?

    python -m studies.conditioning            about five minutes on two CPU cores
    python -m studies.conditioning --full     about fifteen

Claim: an extra token is a soft way; FiLM has no principled start; adaLN-Zero is the best, and stable without warm-up.
Expect: deep and without warm-up, under AdamW at the recipe's learning rate, adaLN-Zero alone learns as it does at
depth 4; leaving the warm-up out costs it nothing. With the recipe it starts behind kinds without gates, so
that a short tier and a long one may differ on which learns best.

Two sets of runs, in each of which nothing differs but what is named. *Quality*: depth 4, the recipe of circles (Muon,
warm-up). *Stability*: depth 4 and 12, each with and without warm-up over a quarter of the steps, AdamW, no clipping of
gradients, batches of 64: Muon makes all steps of a matrix equally long, and clipping shortens them, which would hide
what is asked. Depth 12 without warm-up is tried at a quarter of the learning rate, too. Circles have no labels: what a
network is told is the time.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ditlab.config import AdamWConfig, Config, DiTConfig
from ditlab.recipes import UNCLIPPED
from studies.intervals import Measured, above, below, differences_over_seeds, every, exact, over_seeds
from studies.measures import by_name, cost, loss_of, quality, short, smoothness, told
from studies.plots import COLORS, TEXT, dots, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

KINDS = ("adaln-zero", "adaln", "film", "in-context", "cross-attention")
LR = 4e-3  # the recipe's
LOWER_LR = LR / 4
QUALITY, STABILITY = 0.4, 0.1  # parts of a whole run
HARM = 0.05  # of a warm-up left out, as a share of the loss, that still counts as none

Key = tuple[str, int, bool, float]  # kind, depth, whether warmed up, learning rate


def stability_keys(tier: Tier) -> list[Key]:
    """The runs of the second set, the longest ones first."""
    both = [(kind, depth, warm, LR) for depth, warm, kind in product(tier.depths[::-1], (False, True), KINDS)]
    return [*[(kind, tier.depths[-1], False, LOWER_LR) for kind in KINDS], *both]


def quality_config(tier: Tier, seed: int, kind: str) -> Config:
    """The recipe with another kind of conditioning."""
    return base(
        tier, seed, network=DiTConfig(conditioning=kind, depth=tier.depths[0]), **short(steps=tier.share(QUALITY))
    )


def stability_config(tier: Tier, seed: int, key: Key) -> Config:
    """AdamW without clipping; a step that cannot be learned from is left out, and never ends the training."""
    kind, depth, warm, lr = key
    steps = tier.share(STABILITY)
    return base(
        tier,
        seed,
        network=DiTConfig(conditioning=kind, depth=depth),
        optimizer=AdamWConfig(),
        lr=lr,
        batch_size=tier.batch_size // 2,
        warmup_steps=steps // 4 if warm else 0,
        grad_clip=UNCLIPPED,
        bad_steps=steps + 1,
        log_every=1,
        **short(steps=steps),
    )


def run_name(key: Key, seed: int) -> str:
    """Of the folder."""
    kind, depth, warm, lr = key
    return f"stability-{kind}-depth{depth}-{'warm-up' if warm else 'none'}-lr{lr:g}-seed{seed}"


class Stability:
    """What the second set of runs gave: for each key, one of everything a seed."""

    def __init__(self, trained: dict[str, Trained], tier: Tier, workers: Workers) -> None:
        self.keys, self.depths = stability_keys(tier), tier.depths
        folders = [trained[run_name(key, seed)].folder for key in self.keys for seed in tier.seeds]
        losses: list[float] = workers.map(loss_of, [(folder, tier) for folder in folders])
        self.loss = by_name(self.keys, tier, losses)
        self.smooth = by_name(self.keys, tier, [smoothness(folder) for folder in folders])

    def skipped(self, run: Key) -> int:
        """Steps that were not learned from, over all seeds."""
        return sum(smooth.skipped for smooth in self.smooth[run])

    def jumps(self, run: Key) -> int:
        """Jumps of the loss, over all seeds."""
        return sum(smooth.jumps for smooth in self.smooth[run])

    def harm(self, kind: str, depth: int) -> Measured:
        """By which share the loss is higher without warm-up than with it, seed by seed."""
        without, warm = self.loss[kind, depth, False, LR], self.loss[kind, depth, True, LR]
        return over_seeds([a / b - 1 for a, b in zip(without, warm, strict=True)])

    def deepening(self, kind: str, lr: float = LR) -> Measured:
        """By how much the loss without warm-up is higher for the deep networks than for the others, seed by seed."""
        shallow, deep = self.loss[kind, self.depths[0], False, LR], self.loss[kind, self.depths[-1], False, lr]
        return differences_over_seeds(deep, shallow)


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train both sets and measure them."""
    trained = workers.train(
        {
            **{run_name(key, s): stability_config(tier, s, key) for key in stability_keys(tier) for s in tier.seeds},
            **{f"quality-{kind}-seed{s}": quality_config(tier, s, kind) for kind in KINDS for s in tier.seeds},
        }
    )
    folders = [trained[f"quality-{kind}-seed{s}"].folder for kind in KINDS for s in tier.seeds]
    judged = by_name(KINDS, tier, workers.map(quality, [(folder, tier) for folder in folders]))
    stability = Stability(trained, tier, workers)
    findings = [best(judged), valid(judged), soft(judged), start(stability), stable(stability)]
    return Outcome(findings, table(tier, judged, stability), curves(judged, stability))


def apart(judged: dict[str, list[dict[str, float]]], kind: str, other: str, what: str) -> Measured:
    """A figure of one kind minus that of another, seed by seed."""
    return differences_over_seeds([run[what] for run in judged[kind]], [run[what] for run in judged[other]])


def best(judged: dict[str, list[dict[str, float]]]) -> Finding:
    """Has adaLN-Zero the lowest loss?"""
    figures = {kind: apart(judged, kind, "adaln-zero", "loss") for kind in KINDS[1:]}
    return Finding(
        claim="adaLN-Zero learns best of the five.",
        measurement="Held-out loss at depth 4 with the recipe, minus that of adaLN-Zero.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"loss above adaLN-Zero's: {told(figures)}",
        figures=figures,
    )


def valid(judged: dict[str, list[dict[str, float]]]) -> Finding:
    """Does adaLN-Zero draw the most valid circles?"""
    figures = {kind: apart(judged, "adaln-zero", kind, "valid") for kind in KINDS[1:]}
    return Finding(
        claim="adaLN-Zero draws the most valid circles.",
        measurement="Share of valid circles of adaLN-Zero at depth 4 with the recipe, minus that of each other kind.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"more valid circles than {told(figures)}",
        figures=figures,
    )


def soft(judged: dict[str, list[dict[str, float]]]) -> Finding:
    """Is a token worse than every kind that modulates?"""
    figures = {kind: apart(judged, "in-context", kind, "loss") for kind in KINDS[:3]}
    return Finding(
        claim="The time as an extra token is a soft way to tell it.",
        measurement="Held-out loss of in-context tokens at depth 4 with the recipe, minus that of each kind that "
        "modulates the norms.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"loss of in-context above that of {told(figures)}",
        figures=figures,
    )


def start(stability: Stability) -> Finding:
    """Does FiLM learn worse when it is deep, where adaLN-Zero does not?"""
    figures = {kind: stability.deepening(kind) for kind in KINDS}
    at_lower = {f"{kind}, lr {LOWER_LR:g}": stability.deepening(kind, LOWER_LR) for kind in KINDS}
    return Finding(
        claim="FiLM has no principled start: it does not train when it is deep.",
        measurement=f"Held-out loss at depth 12 minus that at depth 4, AdamW at {LR:g} without warm-up or clipping. "
        f"Beside it, what depth 12 at {LOWER_LR:g} has above depth 4 at {LR:g}.",
        verdict=above(figures["film"], 0),
        reason=f"loss at depth 12 above depth 4: {told(figures)}",
        figures=figures | at_lower,
    )


def stable(stability: Stability) -> Finding:
    """Does it make no difference to adaLN-Zero to leave the warm-up out?"""
    harms = {(kind, depth): stability.harm(kind, depth) for depth in stability.depths for kind in KINDS}
    own = [("adaln-zero", depth) for depth in stability.depths]
    lost = exact(sum(stability.skipped((*run, False, LR)) for run in own))
    figures = {f"{kind}, depth {depth}": figure for (kind, depth), figure in harms.items()}
    return Finding(
        claim="adaLN-Zero trains stably without warm-up.",
        measurement=f"Held-out loss without warm-up over that with it, minus 1, AdamW at {LR:g} without clipping; at "
        f"most {HARM:.0%} at both depths, and no step that could not be learned from.",
        verdict=every([*(below(harms[run], HARM) for run in own), below(lost, 1)]),
        reason=f"{told({f'depth {depth}': harms[kind, depth] for kind, depth in own})}; {lost.value:.0f} steps lost",
        figures=figures | {"adaln-zero, steps not learned from": lost},
    )


def table(tier: Tier, judged: dict[str, list[dict[str, float]]], stability: Stability) -> list[dict[str, Any]]:
    """A row for each kind in the first set, and for each run in the second."""
    rows = []
    for kind in KINDS:
        config = quality_config(tier, 0, kind)
        means = {what: float(np.mean([run[what] for run in judged[kind]])) for what in ("loss", "valid")}
        rows.append(row("quality", config, means["loss"], means["valid"]))
    for run in stability.keys:
        tail = float(np.mean([smooth.tail for smooth in stability.smooth[run]]))
        config, loss = stability_config(tier, 0, run), float(np.mean(stability.loss[run]))
        rows.append(row("stability", config, loss, None, stability.skipped(run), stability.jumps(run), tail))
    return rows


def row(runs: str, config: Config, loss: float, *others: float | None) -> dict[str, Any]:
    """A row; what was not looked at is None."""
    network = config.network
    assert isinstance(network, DiTConfig)
    names = ("valid", "steps not learned from", "jumps of the loss", "tail of the gradient")
    return {
        "runs": runs,
        "kind": network.conditioning,
        "depth": network.depth,
        "optimizer": config.optimizer.kind,
        "lr": config.lr,
        "warm-up steps": config.warmup_steps,
        **cost(config)._asdict(),
        "loss": loss,
        **dict.fromkeys(names),
        **dict(zip(names, others, strict=False)),
    }


def curves(judged: dict[str, list[dict[str, float]]], stability: Stability) -> dict[str, Any]:
    """Every loss with its interval, for the plot."""
    return {
        "quality": [over_seeds([run["loss"] for run in judged[kind]])._asdict() for kind in KINDS],
        "stability": {
            f"depth {depth}, {'with' if warm else 'without'} warm-up": [
                over_seeds(stability.loss[kind, depth, warm, LR])._asdict() for kind in KINDS
            ]
            for depth, warm in product(stability.depths, (True, False))
        },
    }


def draw(result: dict[str, Any]) -> Figure:
    """Losses of both sets."""
    figure, (left, right) = page("What each kind of conditioning learns, and what a deep one without warm-up does", 2)
    places = range(len(KINDS))
    for place, color, each in zip(places, COLORS, result["curves"]["quality"], strict=False):
        dots(left, [place], [each], color)
    name(left, "depth 4, the recipe", y="held-out loss")
    for i, (label, figures) in enumerate(result["curves"]["stability"].items()):
        color = COLORS[i // 2]
        dots(
            right,
            [place + 0.16 * (i - 1.5) for place in places],
            figures,
            color,
            mfc="white" if i % 2 else color,
            label=label,
        )
    name(right, f"AdamW at {LR:g}, no clipping")
    for axes in (left, right):
        axes.set_xticks(places, [kind.replace("-", "-\n", 1) for kind in KINDS], fontsize=8, color=TEXT)
        axes.set_xlim(-0.6, len(KINDS) - 0.4)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=8, frameon=False)
    return figure


STUDY = Study(
    "conditioning",
    "The time as an extra token is soft, FiLM has no principled start, and adaLN-Zero is the best and stable without "
    "warm-up.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
