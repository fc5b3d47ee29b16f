"""Flow matching or DDPM: which draws better circles with the same number of evaluations of the network?

    python -m studies.objectives            on all CPU cores; its JSON has the seconds
    python -m studies.objectives --full

Claim: with the same number of evaluations, flow matching draws better samples than DDPM.
Expect: it does with few evaluations; with 49 and more the objectives are close.

Networks are trained on circles by flow matching on the linear path, and by DDPM (1,000 steps, linear betas) with eps or
v as the target. Network, optimizer, steps, batches and data are the same, with less than a third of the recipe's steps.
Flow matching uses uniform times and shift 1, like DDPM, because the recipe's shift of 0.5 was chosen on circles for
flow matching. Each objective has the best of three learning rates, judged by circles drawn with 25 evaluations of
Heun's method, and the best solver for each number of evaluations: Euler (DDIM for DDPM), Heun or DPM-Solver++(2M). Both
are chosen at the first seed, with samples that are not used for judging. Heun's method takes an odd number of
evaluations: 9 of 10, 99 of 100.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ditlab.config import Config, DDPMConfig, FlowConfig, ProcessConfig
from studies.intervals import Measured, above, differences_over_seeds, over_seeds
from studies.measures import by_name, drawn, short, steps_within
from studies.plots import COLORS, TEXT, dots, key, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

EVALUATIONS = 5, 10, 25, 49, 100
CHOSEN_AT = 25  # evaluations of Heun's method, for choosing learning rates
FEW = 10  # and fewer
SOLVERS = {"flow": ("euler", "heun", "dpm-solver++"), "ddpm": ("ddim", "heun", "dpm-solver++")}
CHOOSING = 1  # the seed of the samples for choosing learning rates and solvers
LRS = 2e-3, 4e-3, 8e-3
PART = 0.3  # share of a whole run
OBJECTIVES = {"flow": "flow matching", "eps": "DDPM, eps", "v": "DDPM, v"}
PROCESSES: dict[str, ProcessConfig] = {
    "flow": FlowConfig(times="uniform"),  # like DDPM's
    "eps": DDPMConfig(target="eps"),
    "v": DDPMConfig(target="v"),
}


class Cell(NamedTuple):
    """One comparison."""

    objective: str
    evaluations: int


CELLS = [Cell(objective, count) for objective, count in product(OBJECTIVES, EVALUATIONS)]


def config_of(tier: Tier, seed: int, objective: str, lr: float) -> Config:
    """The recipe of circles with another objective."""
    return base(tier, seed, process=PROCESSES[objective], lr=lr, **short(steps=tier.share(PART)))


def run_name(objective: str, lr: float, seed: int) -> str:
    """Of the folder."""
    return f"objective-{objective}-lr{lr:g}-seed{seed}"


def solvers_of(objective: str) -> tuple[str, ...]:
    """Those that are tried."""
    return SOLVERS["flow" if objective == "flow" else "ddpm"]


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train, choose learning rates and solvers, and judge."""
    tried = choose_rates(tier, workers)
    rates = {objective: max(LRS, key=lambda lr: goodness(tried[objective, lr])) for objective in OBJECTIVES}
    wanted = {
        run_name(objective, lr, seed): config_of(tier, seed, objective, lr)
        for objective, lr in rates.items()
        for seed in tier.seeds
    }
    runs = by_name(list(OBJECTIVES), tier, list(workers.train(wanted).values()))
    solvers = choose(tier, workers, runs)
    jobs = [(cell, run.folder) for cell in CELLS for run in runs[cell.objective]]
    found = workers.map(judge, [(folder, tier.samples, solvers[cell], cell.evaluations, 0) for cell, folder in jobs])
    judged = by_name(CELLS, tier, found)
    findings = [
        compare(judged, objective, what, counts, tier.share(PART))
        for objective in ("eps", "v")
        for what in ("valid", "energy_distance")
        for counts in ([n for n in EVALUATIONS if n <= FEW], [n for n in EVALUATIONS if n > FEW])
    ]
    rows = [row(cell, rates[cell.objective], solvers[cell], judged[cell]) for cell in CELLS]
    by_rate = {
        OBJECTIVES[objective]: {f"{lr:g}": tried[objective, lr]["valid"] for lr in LRS} for objective in OBJECTIVES
    }
    return Outcome(findings, rows, curves(judged) | {"valid by learning rate": by_rate})


def choose_rates(tier: Tier, workers: Workers) -> dict[tuple[str, float], dict[str, float]]:
    """The figures of each objective at each learning rate, at the first seed."""
    tried, seed = list(product(OBJECTIVES, LRS)), tier.seeds[0]
    runs = workers.train({run_name(*each, seed): config_of(tier, seed, *each) for each in tried})
    half = max(2, tier.samples // 2)
    jobs = [(runs[run_name(*each, seed)].folder, half, "heun", CHOSEN_AT, CHOOSING) for each in tried]
    return dict(zip(tried, workers.map(judge, jobs), strict=True))


def goodness(figures: dict[str, float]) -> tuple[float, float]:
    """More valid circles are better; for equal numbers, the smaller energy distance."""
    return figures["valid"], -figures["energy_distance"]


def judge(folder: Path, samples: int, solver: str, evaluations: int, seed: int) -> dict[str, float]:
    """The figures of one run with one solver; runs in a process of the pool."""
    return drawn(folder, samples, solver, evaluations, seed)


def choose(tier: Tier, workers: Workers, runs: dict[str, list[Trained]]) -> dict[Cell, str]:
    """The solver with most valid circles for each cell; for equal numbers, with the smaller energy distance."""
    tried = [(cell, solver) for cell in CELLS for solver in solvers_of(cell.objective)]
    half = max(2, tier.samples // 2)
    found = workers.map(
        judge,
        [(runs[cell.objective][0].folder, half, solver, cell.evaluations, CHOOSING) for cell, solver in tried],
    )
    figures = dict(zip(tried, found, strict=True))
    return {cell: max(solvers_of(cell.objective), key=lambda solver: goodness(figures[cell, solver])) for cell in CELLS}


def apart(judged: dict[Cell, list[dict[str, float]]], objective: str, what: str, counts: list[int]) -> Measured:
    """How much better flow matching is: the mean over numbers of evaluations, seed by seed."""
    sign = 1 if what == "valid" else -1
    ours, theirs = (
        [sign * float(np.mean([run[what] for run in runs])) for runs in zip(*cells, strict=True)]
        for cells in ([judged[Cell(each, count)] for count in counts] for each in ("flow", objective))
    )
    return differences_over_seeds(ours, theirs)


def compare(
    judged: dict[Cell, list[dict[str, float]]], objective: str, what: str, counts: list[int], steps: int
) -> Finding:
    """Is flow matching better, on average over some numbers of evaluations?"""
    words = " or ".join(map(str, counts)) if len(counts) < 3 else f"{counts[0]} to {counts[-1]}"
    better = {"valid": "more valid circles", "energy_distance": "a smaller energy distance"}[what]
    mean, theirs = apart(judged, objective, what, counts), OBJECTIVES[objective]
    figures = {f"mean over {words} evaluations": mean}
    figures |= {f"{count} evaluations": apart(judged, objective, what, [count]) for count in counts}
    return Finding(
        claim=f"After {steps:,} steps, with {words} evaluations, flow matching draws {better} than {theirs}.",
        measurement=f"{'Share of valid circles' if what == 'valid' else 'Energy distance'} of flow matching and of "
        f"{theirs}, each at its best learning rate and with its best solver: by how much flow matching is better, on "
        "average over the numbers of evaluations.",
        verdict=above(mean, 0),
        reason=f"better by {mean}",
        figures=figures,
    )


def row(cell: Cell, lr: float, solver: str, judged: list[dict[str, float]]) -> dict[str, Any]:
    """The figures of an objective with the given number of evaluations."""
    return {
        "objective": OBJECTIVES[cell.objective],
        "lr": lr,
        "evaluations at most": cell.evaluations,
        "evaluations": judged[0]["evaluations"],
        "solver": solver,
        "steps": steps_within(solver, cell.evaluations),
        **{
            what: float(np.mean([run[what] for run in judged]))
            for what in ("valid", "overlap", "energy_distance", "energy_distance_floor")
        },
    }


def curves(judged: dict[Cell, list[dict[str, float]]]) -> dict[str, Any]:
    """Both figures by objective and evaluations, with intervals."""
    lines = {
        what: {
            OBJECTIVES[objective]: [
                over_seeds([run[what] for run in judged[Cell(objective, count)]])._asdict() for count in EVALUATIONS
            ]
            for objective in OBJECTIVES
        }
        for what in ("valid", "energy_distance")
    }
    floor = float(np.mean([run["energy_distance_floor"] for runs in judged.values() for run in runs]))
    return lines | {"evaluations": list(EVALUATIONS), "energy_distance_floor": floor}


def draw(result: dict[str, Any]) -> Figure:
    """Valid circles and energy distance against evaluations."""
    figure, (valid, energy) = page("Circles at as many evaluations, each objective with its best solver", 2)
    told_curves = result["curves"]
    for axes, what, text in ((valid, "valid", "share that is valid"), (energy, "energy_distance", "energy distance")):
        for i, (objective, line) in enumerate(told_curves[what].items()):
            x = np.array(told_curves["evaluations"]) * (1 + 0.03 * (i - 1))  # beside each other
            dots(axes, list(x), line, COLORS[i], fmt="o-", markersize=4, label=objective)
        axes.set_xscale("log")
        axes.set_xticks(told_curves["evaluations"], [str(n) for n in told_curves["evaluations"]], color=TEXT)
        axes.minorticks_off()
        name(axes, text, "evaluations of the network")
    valid.set_ylim(0, 1)
    energy.set_yscale("log")
    energy.yaxis.set_minor_formatter(NullFormatter())
    level(energy, told_curves["energy_distance_floor"], "real circles")
    key(valid)
    return figure


STUDY = Study(
    "objectives",
    "At as many evaluations flow matching draws better samples than DDPM.",
    measure,
    draw,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
