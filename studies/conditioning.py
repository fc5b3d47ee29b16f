"""Which kind of conditioning on the time is best, and which trains without warm-up and at depth?

    python -m studies.conditioning            on all CPU cores; its JSON has the seconds
    python -m studies.conditioning --full

Claim: an extra token is a soft way; FiLM has no principled start; adaLN-Zero is the best, and stable without warm-up.

Expect: deep and without warm-up, under AdamW at the recipe's learning rate, only adaLN-Zero learns as well as at depth
4; leaving out the warm-up costs it nothing. With the recipe it starts behind kinds without gates, so a short tier and a
long one may disagree about which learns best.

There are two sets of runs, in each of which only the named settings differ. *Quality*: depth 4, the recipe of circles
(Muon, warm-up) at its learning rate. Kinds differ in their parameters, and adaLN-Zero has the most; FiLM and in-context
are also trained at a width that gives them as many, within 3 %. *Stability*: depth 4 and 12, each with and without
warm-up over a quarter of the steps, AdamW, no gradient clipping, batches of 64. (Muon makes all steps of a matrix
equally long, and clipping shortens them, which would hide the effect.) Depth 12 without warm-up is also tried at a
quarter of the learning rate, and with an adaLN-Zero whose gates start at 1, so that it lacks only the start as the
identity. Circles have no labels, so the time is the only condition.

The criteria were fixed beforehand: FiLM fails at depth if its loss grows by more than adaLN-Zero's from depth 4 to 12,
and by at least a tenth; leaving out the warm-up matters if it costs a twentieth of the loss.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ditlab.config import AdamWConfig, Config, DiTConfig
from ditlab.recipes import UNCLIPPED
from studies.identity import open_gates
from studies.intervals import Measured, above, below, differences_over_seeds, every, exact, over_seeds
from studies.measures import by_name, cost, loss_of, quality, short, smoothness
from studies.plots import COLORS, TEXT, dots, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

KINDS = ("adaln-zero", "adaln", "film", "in-context", "cross-attention")
LR = 4e-3  # the recipe's
LOWER_LR = LR / 4
QUALITY, STABILITY = 0.2, 0.05  # parts of a whole run
HARM = 0.05  # relative cost of leaving out the warm-up that still counts as none
DEEP = 0.1  # relative growth of the loss from which a kind counts as not training at depth
WIDTHS = {"film": 76, "in-context": 84}  # with as many parameters as adaLN-Zero
OPEN = "adaln-zero, gates at 1"  # adaLN-Zero except for its start

Judged = dict[str, list[dict[str, float]]]
Key = tuple[str, int, bool, float]  # kind, depth, whether warmed up, learning rate


def stability_keys(tier: Tier) -> list[Key]:
    """The runs of the second set, the longest ones first."""
    both = [(kind, depth, warm, LR) for depth, warm, kind in product(tier.depths[::-1], (False, True), KINDS)]
    deep = tier.depths[-1]
    opened = [(OPEN, deep, warm, LR) for warm in (False, True)]
    return [*[(kind, deep, False, LOWER_LR) for kind in KINDS], *opened, *both]


def quality_config(tier: Tier, seed: int, kind: str, dim: int = DiTConfig().dim) -> Config:
    """The recipe with another kind of conditioning."""
    network = DiTConfig(conditioning=kind, depth=tier.depths[0], dim=dim)
    return base(tier, seed, network=network, **short(steps=tier.share(QUALITY)))


def stability_config(tier: Tier, seed: int, key: Key) -> Config:
    """AdamW without clipping; bad steps are skipped and never end the training."""
    kind, depth, warm, lr = key
    steps = tier.share(STABILITY)
    return base(
        tier,
        seed,
        network=DiTConfig(conditioning=KINDS[0] if kind == OPEN else kind, depth=depth),
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
    kind = kind.replace(", ", "-").replace(" ", "-")
    return f"stability-{kind}-depth{depth}-{'warm-up' if warm else 'none'}-lr{lr:g}-seed{seed}"


class Stability:
    """Results of the second set of runs: for each key, one value per seed."""

    def __init__(self, trained: dict[str, Trained], tier: Tier, workers: Workers) -> None:
        self.keys, self.depths = stability_keys(tier), tier.depths
        folders = [trained[run_name(key, seed)].folder for key in self.keys for seed in tier.seeds]
        losses: list[float] = workers.map(loss_of, [(folder, tier) for folder in folders])
        self.loss = by_name(self.keys, tier, losses)
        self.smooth = by_name(self.keys, tier, [smoothness(folder) for folder in folders])

    def skipped(self, run: Key) -> int:
        """Skipped steps, over all seeds."""
        return sum(smooth.skipped for smooth in self.smooth[run])

    def jumps(self, run: Key) -> int:
        """Jumps of the loss, over all seeds."""
        return sum(smooth.jumps for smooth in self.smooth[run])

    def harms(self, kind: str, depth: int) -> list[float]:
        """Relative increase of the loss without warm-up, seed by seed."""
        without, warm = self.loss[kind, depth, False, LR], self.loss[kind, depth, True, LR]
        return [a / b - 1 for a, b in zip(without, warm, strict=True)]

    def deepening(self, kind: str, lr: float = LR) -> list[float]:
        """Loss without warm-up of the deep networks minus that of the others, seed by seed."""
        shallow, deep = self.loss[kind, self.depths[0], False, LR], self.loss[kind, self.depths[-1], False, lr]
        return [a - b for a, b in zip(deep, shallow, strict=True)]

    def growth(self, kind: str) -> list[float]:
        """The same relative to the loss of the others."""
        shallow = self.loss[kind, self.depths[0], False, LR]
        return [a / b for a, b in zip(self.deepening(kind), shallow, strict=True)]


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train both sets and measure them."""
    keys = stability_keys(tier)
    wanted = {run_name(key, s): stability_config(tier, s, key) for key in keys for s in tier.seeds}
    starts = {run_name(key, s): open_gates for key in keys for s in tier.seeds if key[0] == OPEN}
    plain = {f"quality-{kind}-seed{s}": quality_config(tier, s, kind) for kind in KINDS for s in tier.seeds}
    wider = {
        f"quality-{kind}-dim{dim}-seed{s}": quality_config(tier, s, kind, dim)
        for kind, dim in WIDTHS.items()
        for s in tier.seeds
    }
    trained = workers.train(wanted | plain | wider, starts)
    found = workers.map(quality, [(trained[run].folder, tier) for run in [*plain, *wider]])
    judged = by_name(KINDS, tier, found)
    as_many = by_name(list(WIDTHS), tier, found[len(plain) :])
    stability, steps = Stability(trained, tier, workers), tier.share(QUALITY)
    findings = [best(judged, tier), equal(judged, as_many, steps), valid(judged, tier), soft(judged, steps)]
    findings += [start(stability), stable(stability), identity(stability)]
    return Outcome(findings, table(tier, judged, as_many, stability), curves(judged, as_many, stability))


def apart(judged: Judged, kind: str, other: str, what: str, comparisons: int = 1) -> Measured:
    """A figure of one kind minus that of another, seed by seed."""
    ours, theirs = ([run[what] for run in judged[each]] for each in (kind, other))
    return differences_over_seeds(ours, theirs, comparisons)


def closest(figures: dict[str, Measured]) -> str:
    """The kind that comes closest, and its figure."""
    kind = min(figures, key=lambda each: figures[each].value)
    return f"{kind}: {figures[kind]}"


def sizes(tier: Tier) -> str:
    """How many parameters the kinds have."""
    counts = {kind: cost(quality_config(tier, 0, kind)).parameters for kind in KINDS}
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.items())


def best(judged: Judged, tier: Tier) -> Finding:
    """Has adaLN-Zero the lowest loss?"""
    figures = {kind: apart(judged, kind, "adaln-zero", "loss", len(KINDS) - 1) for kind in KINDS[1:]}
    return Finding(
        claim=f"At the recipe's learning rate and width, adaLN-Zero learns best of the five in {steps_of(tier)}.",
        measurement="Held-out loss at depth 4 with the recipe and its one learning rate, minus that of adaLN-Zero. "
        f"Parameters are those that come with each kind: {sizes(tier)}.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"loss above adaLN-Zero's, at the least of {closest(figures)}",
        figures=figures,
    )


def steps_of(tier: Tier) -> str:
    """How long the first set is trained."""
    return f"{tier.share(QUALITY):,} steps"


def equal(judged: Judged, as_many: Judged, steps: int) -> Finding:
    """Has adaLN-Zero a lower loss than others of the same size?"""
    figures = {kind: apart({**judged, kind: as_many[kind]}, kind, "adaln-zero", "loss", len(WIDTHS)) for kind in WIDTHS}
    return Finding(
        claim=f"adaLN-Zero learns better in {steps:,} steps than FiLM and in-context of as many parameters.",
        measurement="Held-out loss at depth 4 with the recipe and its one learning rate, "
        f"{' and '.join(f'{kind} {dim} wide' for kind, dim in WIDTHS.items())}, minus that of adaLN-Zero.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"loss above adaLN-Zero's, at the least of {closest(figures)}",
        figures=figures,
    )


def valid(judged: Judged, tier: Tier) -> Finding:
    """Does adaLN-Zero draw the most valid circles?"""
    figures = {kind: apart(judged, "adaln-zero", kind, "valid", len(KINDS) - 1) for kind in KINDS[1:]}
    return Finding(
        claim=f"At the recipe's learning rate and width, adaLN-Zero draws the most valid circles after "
        f"{steps_of(tier)}.",
        measurement="Share of valid circles of adaLN-Zero at depth 4 with the recipe and its one learning rate, minus "
        "that of each other kind, with the parameters that come with it.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"more valid circles, at the least than {closest(figures)}",
        figures=figures,
    )


def soft(judged: Judged, steps: int) -> Finding:
    """Is a token worse than every kind that modulates?"""
    figures = {kind: apart(judged, "in-context", kind, "loss", 3) for kind in KINDS[:3]}
    return Finding(
        claim=f"The time as an extra token is a soft way to tell it: in {steps:,} steps it learns less.",
        measurement="Held-out loss of in-context tokens at depth 4 with the recipe and its one learning rate, minus "
        "that of each kind that modulates the norms, all of one width.",
        verdict=every(above(figure, 0) for figure in figures.values()),
        reason=f"loss of in-context above others, at the least {closest(figures)}",
        figures=figures,
    )


def start(stability: Stability) -> Finding:
    """Does FiLM learn worse at depth, unlike adaLN-Zero?"""
    film, zero = stability.deepening("film"), stability.deepening("adaln-zero")
    beyond, share = differences_over_seeds(film, zero, 2), over_seeds(stability.growth("film"), 2)
    by_kind = {f"{kind}, depth 12 above depth 4": over_seeds(stability.deepening(kind)) for kind in KINDS}
    lower = {f"{kind}, lr {LOWER_LR:g}": over_seeds(stability.deepening(kind, LOWER_LR)) for kind in KINDS}
    return Finding(
        claim="FiLM has no principled start: it does not train when it is deep.",
        measurement=f"How much higher the held-out loss is at depth 12 than at depth 4, AdamW at {LR:g} without "
        "warm-up or clipping: for FiLM more than for adaLN-Zero, seed by seed, and at least "
        f"{DEEP:.0%} of FiLM's own at depth 4. Beside it, what depth 12 at {LOWER_LR:g} has above depth 4 at {LR:g}.",
        verdict=every([above(beyond, 0), above(share, DEEP)]),
        reason=f"FiLM's loss grows by {beyond} more than adaLN-Zero's",
        figures={"film beyond adaln-zero": beyond, "film, share of its loss": share} | by_kind | lower,
    )


def stable(stability: Stability) -> Finding:
    """Does leaving out the warm-up make no difference to adaLN-Zero?"""
    count = len(stability.depths)
    harms = {
        (kind, depth): over_seeds(stability.harms(kind, depth), count) for depth in stability.depths for kind in KINDS
    }
    own = [("adaln-zero", depth) for depth in stability.depths]
    lost = exact(sum(stability.skipped((*run, False, LR)) for run in own))
    figures = {f"{kind}, depth {depth}": figure for (kind, depth), figure in harms.items()}
    worst = max(own, key=lambda run: harms[run].value)
    return Finding(
        claim="adaLN-Zero trains stably without warm-up.",
        measurement=f"Held-out loss without warm-up over that with it, minus 1, AdamW at {LR:g} without clipping; at "
        f"most {HARM:.0%} at both depths, and no step that could not be learned from.",
        verdict=every([*(below(harms[run], HARM) for run in own), below(lost, 1)]),
        reason=f"without warm-up the loss at depth {worst[1]} is higher by a share of {harms[worst]}",
        figures=figures | {"adaln-zero, steps not learned from": lost},
    )


def identity(stability: Stability) -> Finding:
    """Does the same network need the warm-up if it does not start as the identity?"""
    deep = stability.depths[-1]
    zero, opened = stability.harms("adaln-zero", deep), stability.harms(OPEN, deep)
    more = differences_over_seeds(opened, zero)
    return Finding(
        claim="It is the start as the identity that makes adaLN-Zero stable without warm-up.",
        measurement=f"Held-out loss at depth 12 without warm-up over that with it, minus 1, AdamW at {LR:g} without "
        f"clipping: that of adaLN-Zero whose gates start at 1, minus that of adaLN-Zero; {HARM:.0%} of the loss or "
        "more.",
        verdict=above(more, HARM),
        reason=f"with gates at 1 leaving the warm-up out costs a share of {more} more",
        figures={"more with gates at 1": more, "adaln-zero": over_seeds(zero), OPEN: over_seeds(opened)},
    )


def table(tier: Tier, judged: Judged, as_many: Judged, stability: Stability) -> list[dict[str, Any]]:
    """A row for each kind in the first set, and for each run in the second."""
    rows = []
    configs = [quality_config(tier, 0, kind) for kind in KINDS]
    wide = [quality_config(tier, 0, kind, dim) for kind, dim in WIDTHS.items()]
    for config, kind, runs in zip(
        [*configs, *wide], [*KINDS, *WIDTHS], [*judged.values(), *as_many.values()], strict=True
    ):
        means = {what: float(np.mean([run[what] for run in runs])) for what in ("loss", "valid")}
        rows.append(row("quality", kind, config, means["loss"], means["valid"]))
    for run in stability.keys:
        tail = float(np.mean([smooth.tail for smooth in stability.smooth[run]]))
        config, loss = stability_config(tier, 0, run), float(np.mean(stability.loss[run]))
        rows.append(row("stability", run[0], config, loss, None, stability.skipped(run), stability.jumps(run), tail))
    return rows


def row(runs: str, kind: str, config: Config, loss: float, *others: float | None) -> dict[str, Any]:
    """A row; None for what was not measured."""
    network = config.network
    assert isinstance(network, DiTConfig)
    names = ("valid", "steps not learned from", "jumps of the loss", "tail of the gradient")
    return {
        "runs": runs,
        "kind": kind,
        "dim": network.dim,
        "depth": network.depth,
        "optimizer": config.optimizer.kind,
        "lr": config.lr,
        "warm-up steps": config.warmup_steps,
        **cost(config)._asdict(),
        "loss": loss,
        **dict.fromkeys(names),
        **dict(zip(names, others, strict=False)),
    }


def curves(judged: Judged, as_many: Judged, stability: Stability) -> dict[str, Any]:
    """Every loss with its interval, for the plot."""
    return {
        "quality": [over_seeds([run["loss"] for run in judged[kind]])._asdict() for kind in KINDS],
        "as many parameters": {kind: over_seeds([run["loss"] for run in as_many[kind]])._asdict() for kind in WIDTHS},
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
    for kind, each in result["curves"]["as many parameters"].items():
        dots(left, [KINDS.index(kind) + 0.25], [each], COLORS[KINDS.index(kind)], mfc="white")
    name(left, "depth 4, the recipe (○ as many parameters as adaln-zero)", y="held-out loss")
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
