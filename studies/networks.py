"""A diffusion transformer, a U-Net and an MLP: which is best at equal parameters, and at equal compute?

    python -m studies.networks            on all CPU cores; its JSON has the seconds
    python -m studies.networks --full

Claim: at small scale a U-Net still wins over a transformer. Expect: it wins at equal parameters, with nine times the
compute; at equal compute the transformer wins; the MLP is last.

*Circles*: steps, batches, data, noise and optimizer are the same for all. The recipe uses Muon for the matrices of a
DiT's blocks, which does not apply to U-Net and MLP, so to be fair AdamW updates everything. Each network has the best
of three learning rates, by its held-out loss at the first seed. Trainings have a tenth of the recipe's length, so the
study compares the speed of learning, not the final quality. Compute is counted as multiply-accumulates of a training
step; processor milliseconds are given too. *Digits*: the same at equal parameters, on 898 images of 8×8 pixels with
labels, each network with the best of three rates on digits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ditlab.config import AdamWConfig, Config, DigitsData, DiTConfig, FlowConfig, MLPConfig, NetworkConfig, UNetConfig
from studies.intervals import Measured, above, differences_over_seeds, over_seeds
from studies.measures import EVALUATIONS, by_name, cost, cpu_of_step, drawn, loss_of, quality, short
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
DIGITS: dict[str, NetworkConfig] = {  # all with about the same number of parameters
    "U-Net": UNetConfig(width=24),
    "DiT": DiTConfig(patch_size=2),
    "MLP": MLPConfig(hidden=295, depth=3),
}
LRS = 1e-3, 2e-3, 4e-3
PART, DIGITS_PART = 0.09, 0.1  # shares of a whole run

Judged = dict[str, list[dict[str, float]]]
Configure = Callable[[Tier, int, str, float], Config]


def config_of(tier: Tier, seed: int, network: str, lr: float) -> Config:
    """The recipe of circles with another network, and AdamW for all parameters."""
    changes = short(steps=tier.share(PART))
    return base(tier, seed, network=NETWORKS[network], optimizer=AdamWConfig(), lr=lr, **changes)


def digits_of(tier: Tier, seed: int, network: str, lr: float) -> Config:
    """The recipe of digits with another network, AdamW for all parameters and guidance 1."""
    return base(
        tier,
        seed,
        data=DigitsData(),
        network=DIGITS[network],
        process=FlowConfig(),
        optimizer=AdamWConfig(),
        lr=lr,
        **short(steps=tier.share(DIGITS_PART)),
    )


Rates = dict[str, dict[float, float]]  # held-out loss at the first seed by network and learning rate


def tuned(
    tier: Tier, workers: Workers, data: str, names: Iterable[str], configure: Configure
) -> tuple[Rates, dict[str, float], list[Trained]]:
    """Each network's loss at each rate for the first seed, the best rate, and the runs with it for all seeds."""

    def folder(network: str, lr: float, seed: int) -> str:
        return f"adamw-{data}-{slug(network)}-lr{lr:g}-seed{seed}"

    names, first = list(names), tier.seeds[0]
    tried = [(each, lr) for each in names for lr in LRS]
    runs = workers.train({folder(*each, first): configure(tier, first, *each) for each in tried})
    found = workers.map(loss_of, [(runs[folder(*each, first)].folder, tier) for each in tried])
    losses = dict(zip(tried, found, strict=True))
    rates = {each: {lr: losses[each, lr] for lr in LRS} for each in names}
    chosen = {each: min(LRS, key=rates[each].__getitem__) for each in names}
    wanted = {folder(each, lr, s): configure(tier, s, each, lr) for each, lr in chosen.items() for s in tier.seeds}
    return rates, chosen, list(workers.train(wanted).values())


def slug(network: str) -> str:
    """The name as part of a folder's name."""
    return network.lower().replace("'s", "").replace(" ", "-")


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train, judge, and compare."""
    rates, chosen, trained = tuned(tier, workers, "circles", NETWORKS, config_of)
    judged = by_name(list(NETWORKS), tier, workers.map(quality, [(run.folder, tier) for run in trained]))
    digit_rates, _, few = tuned(tier, workers, "digits", DIGITS, digits_of)
    read = by_name(list(DIGITS), tier, workers.map(digits, [(run.folder, tier) for run in few]))
    after = f"After {tier.share(PART):,} steps"
    findings = [
        better(f"{after}, at as many parameters, a U-Net wins over a DiT.", judged, "U-Net", "DiT"),
        better(f"{after}, at the DiT's compute, a U-Net wins over it.", judged, "U-Net of the DiT's compute", "DiT"),
        better(f"{after}, at the U-Net's compute, it wins over a DiT.", judged, "U-Net", "DiT of the U-Net's compute"),
        better(f"{after}, at as many parameters, a DiT wins over an MLP.", judged, "DiT", "MLP"),
        better(f"{after}, at as much compute, a DiT wins over an MLP.", judged, "DiT", "MLP of the DiT's compute"),
        with_few_data(read, tier.share(DIGITS_PART)),
    ]
    clocked = workers.map(cpu_of_step, [(config_of(tier, tier.seeds[0], each, chosen[each]),) for each in NETWORKS])
    spent = dict(zip(NETWORKS, clocked, strict=True))
    rows = [row(tier, each, chosen[each], judged[each], spent[each]) for each in NETWORKS]
    curves: dict[str, Any] = {
        what: {each: over_seeds([run[what] for run in judged[each]])._asdict() for each in NETWORKS}
        for what in ("loss", "valid", "energy_distance")
    }
    curves["accuracy"] = {each: over_seeds([run["accuracy"] for run in read[each]])._asdict() for each in DIGITS}
    curves["energy_distance_floor"] = judged["DiT"][0]["energy_distance_floor"]
    curves["loss by learning rate"] = {
        data: {each: {f"{lr:g}": loss for lr, loss in by_lr.items()} for each, by_lr in found.items()}
        for data, found in (("circles", rates), ("digits", digit_rates))
    }
    return Outcome(findings, rows, curves)


def digits(folder: Path, tier: Tier) -> dict[str, float]:
    """The figures of samples of digits; their Fréchet distance needs at least 100."""
    return drawn(folder, max(100, tier.samples), "heun", EVALUATIONS)


def apart(judged: Judged, winner: str, other: str, what: str) -> Measured:
    """A figure for one network minus that for another, seed by seed."""
    return differences_over_seeds([run[what] for run in judged[winner]], [run[what] for run in judged[other]])


def better(claim: str, judged: Judged, winner: str, other: str) -> Finding:
    """Does the claimed winner have the lower loss? Circles and distances are reported too."""
    figures = {
        "loss": apart(judged, other, winner, "loss"),
        "valid": apart(judged, winner, other, "valid"),
        "energy distance": apart(judged, other, winner, "energy_distance"),
    }
    return Finding(
        claim=claim,
        measurement=f"Held-out loss of {other}, minus that of {winner}, all under AdamW at the best of the rates "
        f"{', '.join(f'{lr:g}' for lr in LRS)} at the first seed. Beside it, of circles drawn by Heun's method "
        f"in {EVALUATIONS} evaluations: by how much more of them are valid, and the energy distance is smaller.",
        verdict=above(figures["loss"], 0),
        reason=f"loss of {other} minus that of {winner}: {figures['loss']}",
        figures=figures,
    )


def with_few_data(read: Judged, steps: int) -> Finding:
    """Are the U-Net's digits recognised as the requested label more often than the DiT's?"""
    figures = {
        "accuracy": apart(read, "U-Net", "DiT", "accuracy"),
        "Fréchet distance": apart(read, "DiT", "U-Net", "frechet"),
        "accuracy above the MLP": apart(read, "U-Net", "MLP", "accuracy"),
    }
    return Finding(
        claim=f"On 898 images, after {steps:,} steps and at as many parameters, a U-Net wins over a DiT.",
        measurement="Share of digits that a judge reads as asked for, at guidance 1: the U-Net's minus the DiT's, "
        "under AdamW at the rate that is best for each on digits at the first seed. Beside it, by how much its Fréchet "
        "distance is smaller, and its accuracy minus an MLP's.",
        verdict=above(figures["accuracy"], 0),
        reason=f"accuracy of the U-Net minus that of the DiT: {figures['accuracy']}",
        figures=figures,
    )


def row(tier: Tier, network: str, lr: float, judged: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    """The cost and the results of a network."""
    config = config_of(tier, tier.seeds[0], network, lr)
    spent = cost(config)
    return {
        "network": network,
        **spent._asdict(),
        "operations of a step": spent.training(config.batch_size),
        "CPU ms of a step": 1000 * seconds,
        "lr": lr,
        **{what: float(np.mean([run[what] for run in judged])) for what in ("loss", "valid", "energy_distance")},
    }


def draw(result: dict[str, Any]) -> Figure:
    """Loss, valid circles and accuracy, as bars."""
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
