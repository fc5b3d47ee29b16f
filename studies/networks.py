"""A diffusion transformer, a U-Net and an MLP: which is best at as many parameters, and at as much compute?

    python -m studies.networks            about five minutes on two CPU cores
    python -m studies.networks --full     about fifteen

Claim: at small scale a U-Net still wins over a transformer.
Expect: it wins at as many parameters, with nine times the compute; at as much compute the transformer wins; the MLP is
last.

Circles; steps, batches, data and noise are the same for all; Muon moves the transformer's matrices, AdamW everything
else, as in the recipe. Each network has the better one of two learning rates, by its held-out loss at the first seed.
Compute is that of a training step: multiply-accumulates, counted; the milliseconds it takes are told beside it.
*Digits*: the same at as many parameters on 898 images in all, of 8×8 pixels with labels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ditlab.config import Config, DigitsData, DiTConfig, FlowConfig, MLPConfig, NetworkConfig, UNetConfig
from studies.intervals import Measured, above, differences_over_seeds, over_seeds
from studies.measures import EVALUATIONS, by_name, cost, drawn, loss_of, quality, short, told
from studies.plots import COLORS, FAINT, bars, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

# by name, the largest first; sizes are within 3 % of what the names say, which the tests count
NETWORKS: dict[str, NetworkConfig] = {
    "U-Net": UNetConfig(width=24),
    "DiT of the U-Net's compute": DiTConfig(dim=160, depth=6),
    "DiT": DiTConfig(),
    "U-Net of the DiT's compute": UNetConfig(width=8, multipliers=(1, 2, 3, 3)),
    "MLP of the DiT's compute": MLPConfig(hidden=960, depth=3),
    "MLP": MLPConfig(hidden=240, depth=3),
}
DIGITS: dict[str, NetworkConfig] = {  # all of about as many parameters
    "U-Net": UNetConfig(width=24),
    "DiT": DiTConfig(patch_size=2),
    "MLP": MLPConfig(hidden=295, depth=3),
}
LRS = 1e-3, 4e-3
PART, DIGITS_PART = 0.175, 0.15  # of a whole run

Judged = dict[str, list[dict[str, float]]]


def config_of(tier: Tier, seed: int, network: str, lr: float) -> Config:
    """The recipe of circles with another network."""
    return base(tier, seed, network=NETWORKS[network], lr=lr, **short(steps=tier.share(PART)))


def digits_of(tier: Tier, seed: int, network: str, lr: float) -> Config:
    """The recipe of digits with another network; they are drawn at guidance 1."""
    return base(
        tier,
        seed,
        data=DigitsData(),
        network=DIGITS[network],
        process=FlowConfig(),
        lr=lr,
        **short(steps=tier.share(DIGITS_PART)),
    )


def tuned(tier: Tier, workers: Workers) -> tuple[dict[str, float], dict[str, Trained]]:
    """The better learning rate of each network, and the runs at all seeds with it."""
    first = tier.seeds[0]
    tried = {(each, lr): f"network-{slug(each)}-lr{lr:g}-seed{first}" for each in NETWORKS for lr in LRS}
    runs = workers.train({tried[each, lr]: config_of(tier, first, each, lr) for each, lr in tried})
    losses = dict(zip(tried, workers.map(loss_of, [(runs[run].folder, tier) for run in tried.values()]), strict=True))
    chosen = {each: min(LRS, key=lambda lr: losses[each, lr]) for each in NETWORKS}
    wanted = {
        f"network-{slug(each)}-lr{lr:g}-seed{seed}": config_of(tier, seed, each, lr)
        for each, lr in chosen.items()
        for seed in tier.seeds
    }
    return chosen, workers.train(wanted)


def slug(network: str) -> str:
    """For a folder's name."""
    return network.lower().replace("'s", "").replace(" ", "-")


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train, judge, and compare."""
    chosen, trained = tuned(tier, workers)
    judged = by_name(list(NETWORKS), tier, workers.map(quality, [(run.folder, tier) for run in trained.values()]))
    few = workers.train(
        {
            f"digits-{slug(each)}-seed{seed}": digits_of(tier, seed, each, chosen[each])
            for each in DIGITS
            for seed in tier.seeds
        }
    )
    read = by_name(list(DIGITS), tier, workers.map(digits, [(run.folder, tier) for run in few.values()]))
    findings = [
        better("At as many parameters a U-Net wins over a DiT.", judged, "U-Net", "DiT"),
        better("At the DiT's compute a U-Net wins over it.", judged, "U-Net of the DiT's compute", "DiT"),
        better("At the U-Net's compute it wins over a DiT.", judged, "U-Net", "DiT of the U-Net's compute"),
        better("At as many parameters a DiT wins over an MLP.", judged, "DiT", "MLP"),
        better("At as much compute a DiT wins over an MLP.", judged, "DiT", "MLP of the DiT's compute"),
        with_few_data(read),
    ]
    seconds = by_name(list(NETWORKS), tier, [run.seconds for run in trained.values()])
    rows = [row(tier, each, chosen[each], judged[each], seconds[each]) for each in NETWORKS]
    curves = {
        what: {each: over_seeds([run[what] for run in judged[each]])._asdict() for each in NETWORKS}
        for what in ("loss", "valid", "energy_distance")
    }
    curves["accuracy"] = {each: over_seeds([run["accuracy"] for run in read[each]])._asdict() for each in DIGITS}
    return Outcome(findings, rows, curves | {"energy_distance_floor": judged["DiT"][0]["energy_distance_floor"]})


def digits(folder: Path, tier: Tier) -> dict[str, float]:
    """The figures of samples of digits; their Fréchet distance takes 100 at least."""
    return drawn(folder, max(100, tier.samples), "heun", EVALUATIONS)


def apart(judged: Judged, winner: str, other: str, what: str) -> Measured:
    """A figure of one network minus that of another, seed by seed."""
    return differences_over_seeds([run[what] for run in judged[winner]], [run[what] for run in judged[other]])


def better(claim: str, judged: Judged, winner: str, other: str) -> Finding:
    """Is the loss of the one that is said to win lower? Circles and distances are told beside it."""
    figures = {
        "loss": apart(judged, other, winner, "loss"),
        "valid": apart(judged, winner, other, "valid"),
        "energy distance": apart(judged, other, winner, "energy_distance"),
    }
    return Finding(
        claim=claim,
        measurement=f"Held-out loss of {other}, minus that of {winner}. Beside it, of circles drawn by Heun's method "
        f"in {EVALUATIONS} evaluations: by how much more of them are valid, and the energy distance is smaller.",
        verdict=above(figures["loss"], 0),
        reason=f"{winner} is better than {other} by {told(figures)}",
        figures=figures,
    )


def with_few_data(read: Judged) -> Finding:
    """Are the U-Net's digits read as what was asked for more often than the DiT's?"""
    figures = {
        "accuracy": apart(read, "U-Net", "DiT", "accuracy"),
        "Fréchet distance": apart(read, "DiT", "U-Net", "frechet"),
        "accuracy above the MLP": apart(read, "U-Net", "MLP", "accuracy"),
    }
    return Finding(
        claim="On 898 images, at as many parameters, a U-Net wins over a DiT.",
        measurement="Share of digits that a judge reads as asked for, at guidance 1: the U-Net's minus the DiT's. "
        "Beside it, by how much its Fréchet distance is smaller, and its accuracy minus an MLP's.",
        verdict=above(figures["accuracy"], 0),
        reason=f"the U-Net is better by {told(figures)}",
        figures=figures,
    )


def row(tier: Tier, network: str, lr: float, judged: list[dict[str, float]], seconds: list[float]) -> dict[str, Any]:
    """What a network costs and gives."""
    config = config_of(tier, tier.seeds[0], network, lr)
    spent = cost(config)
    return {
        "network": network,
        **spent._asdict(),
        "operations of a step": spent.training(config.batch_size),
        "ms of a step": 1000 * float(np.median(seconds)) / config.steps,
        "lr": lr,
        **{what: float(np.mean([run[what] for run in judged])) for what in ("loss", "valid", "energy_distance")},
    }


def draw(result: dict[str, Any]) -> Figure:
    """Loss, validity and accuracy, as bars."""
    figure, (loss, valid, accuracy) = page("A DiT, a U-Net and an MLP, trained on as many images", 3)
    curves = result["curves"]
    labels = [each.replace(" of the ", "\nof the\n").replace("'s compute", "'s\ncompute") for each in NETWORKS]
    kinds = {"U": COLORS[1], "D": COLORS[0], "M": FAINT}
    colors = [kinds[each[0]] for each in NETWORKS]
    bars(loss, labels, list(curves["loss"].values()), colors)
    name(loss, "circles: held-out loss")
    bars(valid, labels, list(curves["valid"].values()), colors)
    name(valid, "circles: share that is valid")
    valid.set_ylim(0, 1)
    bars(accuracy, list(DIGITS), list(curves["accuracy"].values()), [kinds[each[0]] for each in DIGITS])
    name(accuracy, "898 digits, as many parameters: read as asked for")
    accuracy.set_ylim(0, 1)
    level(accuracy, 0.1, "chance")
    for axes in (loss, valid):
        axes.tick_params(axis="x", labelsize=6.5)
    return figure


STUDY = Study("networks", "At small scale a U-Net still wins over a diffusion transformer.", measure, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY))
