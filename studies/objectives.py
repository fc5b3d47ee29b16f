"""Flow matching or DDPM: which draws better circles with as many evaluations of the network?

    python -m studies.objectives            about four minutes on two CPU cores
    python -m studies.objectives --full     about ten

Claim: at as many evaluations flow matching draws better samples than DDPM.
Expect: it does with few evaluations; with 49 and more the objectives are close.

The recipe of circles, trained by flow matching on the linear path, and by DDPM (1,000 steps, linear betas) with eps or
v as the target: network, optimizer, steps, batches and data are the same. Each is drawn with the solver that suits it
best at that many evaluations, Euler (DDIM for DDPM), Heun or DPM-Solver++(2M), chosen at the first seed with other
samples than those that are judged. Heun's method takes an odd number of evaluations: 9 of 10, 99 of 100.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ditlab.config import Config, DDPMConfig
from studies.intervals import Measured, above, differences_over_seeds, over_seeds
from studies.measures import drawn, short, steps_within, told
from studies.plots import COLORS, TEXT, dots, key, level, name, page
from studies.study import Finding, Outcome, Study, main
from studies.training import Tier, Trained, Workers, base

EVALUATIONS = 5, 10, 25, 49, 100
FEW = 10  # and fewer
SOLVERS = {"flow": ("euler", "heun", "dpm-solver++"), "ddpm": ("ddim", "heun", "dpm-solver++")}
CHOOSING = 1  # the seed of the samples that a solver is chosen by
OBJECTIVES = {"flow": "flow matching", "eps": "DDPM, eps", "v": "DDPM, v"}


class Cell(NamedTuple):
    """One comparison."""

    objective: str
    evaluations: int


CELLS = [Cell(objective, count) for objective, count in product(OBJECTIVES, EVALUATIONS)]


def runs_of(tier: Tier, objective: str) -> dict[str, Config]:
    """A run for each seed; flow matching is the recipe itself, in the runs that other studies look into."""
    if objective == "flow":
        return {f"base-{seed}": base(tier, seed) for seed in tier.seeds}
    target: Any = objective
    changes = short(steps=tier.steps)
    return {
        f"ddpm-{objective}-{seed}": base(tier, seed, process=DDPMConfig(target=target), **changes)
        for seed in tier.seeds
    }


def solvers_of(objective: str) -> tuple[str, ...]:
    """Those that are tried."""
    return SOLVERS["flow" if objective == "flow" else "ddpm"]


def measure(tier: Tier, workers: Workers) -> Outcome:
    """Train, choose solvers, and judge."""
    wanted = {objective: runs_of(tier, objective) for objective in OBJECTIVES}
    trained = workers.train({run: config for runs in wanted.values() for run, config in runs.items()})
    runs = {objective: [trained[run] for run in names] for objective, names in wanted.items()}
    solvers = choose(tier, workers, runs)
    jobs = [(cell, run.folder) for cell in CELLS for run in runs[cell.objective]]
    found = workers.map(judge, [(folder, tier.samples, solvers[cell], cell.evaluations, 0) for cell, folder in jobs])
    judged: dict[Cell, list[dict[str, float]]] = {cell: [] for cell in CELLS}
    for (cell, _), figures in zip(jobs, found, strict=True):
        judged[cell].append(figures)
    findings = [
        compare(judged, objective, what, counts)
        for objective in ("eps", "v")
        for what in ("valid", "energy_distance")
        for counts in ([n for n in EVALUATIONS if n <= FEW], [n for n in EVALUATIONS if n > FEW])
    ]
    return Outcome(findings, [row(cell, solvers[cell], judged[cell]) for cell in CELLS], curves(judged))


def judge(folder: Path, samples: int, solver: str, evaluations: int, seed: int) -> dict[str, float]:
    """The figures of one run with one solver; a process of the pool does it."""
    return drawn(folder, samples, solver, evaluations, seed)


def choose(tier: Tier, workers: Workers, runs: dict[str, list[Trained]]) -> dict[Cell, str]:
    """The solver of most valid circles for each cell, of those the one of the smaller energy distance."""
    tried = [(cell, solver) for cell in CELLS for solver in solvers_of(cell.objective)]
    half = max(2, tier.samples // 2)
    found = workers.map(
        judge,
        [(runs[cell.objective][0].folder, half, solver, cell.evaluations, CHOOSING) for cell, solver in tried],
    )
    figures = dict(zip(tried, found, strict=True))

    def goodness(cell: Cell, solver: str) -> tuple[float, float]:
        return figures[cell, solver]["valid"], -figures[cell, solver]["energy_distance"]

    return {cell: max(solvers_of(cell.objective), key=lambda solver: goodness(cell, solver)) for cell in CELLS}


def apart(judged: dict[Cell, list[dict[str, float]]], objective: str, what: str, counts: list[int]) -> Measured:
    """How much better flow matching is: the mean over numbers of evaluations, seed by seed."""
    sign = 1 if what == "valid" else -1
    ours, theirs = (
        [sign * float(np.mean([run[what] for run in runs])) for runs in zip(*cells, strict=True)]
        for cells in ([judged[Cell(each, count)] for count in counts] for each in ("flow", objective))
    )
    return differences_over_seeds(ours, theirs)


def compare(judged: dict[Cell, list[dict[str, float]]], objective: str, what: str, counts: list[int]) -> Finding:
    """Is flow matching better, on average over some numbers of evaluations?"""
    words = " or ".join(map(str, counts)) if len(counts) < 3 else f"{counts[0]} to {counts[-1]}"
    better = {"valid": "more valid circles", "energy_distance": "a smaller energy distance"}[what]
    figures = {f"mean over {words} evaluations": apart(judged, objective, what, counts)}
    figures |= {f"{count} evaluations": apart(judged, objective, what, [count]) for count in counts}
    return Finding(
        claim=f"With {words} evaluations flow matching draws {better} than {OBJECTIVES[objective]}.",
        measurement=f"{'Share of valid circles' if what == 'valid' else 'Energy distance'} of flow matching and of "
        f"{OBJECTIVES[objective]}, each with its best solver: by how much flow matching is better, on average over the "
        "numbers of evaluations.",
        verdict=above(next(iter(figures.values())), 0),
        reason=f"better by {told(figures)}",
        figures=figures,
    )


def row(cell: Cell, solver: str, judged: list[dict[str, float]]) -> dict[str, Any]:
    """What an objective reaches with so many evaluations."""
    return {
        "objective": OBJECTIVES[cell.objective],
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
    """Validity and energy distance against evaluations."""
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
