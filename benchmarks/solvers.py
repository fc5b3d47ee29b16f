"""Which solver draws the best circles with how many evaluations? Writes docs/solvers.md.

    python benchmarks/solvers.py runs/circles --out docs/solvers.md        about three minutes on one CPU core

Measures 1,000 samples of a trained circles run, seed 0, for each solver and number of evaluations of the network: the
share of valid circles and the energy distance to 2,000 data. A solver takes as many steps as fit into the evaluations.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from ditlab import load
from ditlab.core.registry import SOLVERS
from ditlab.diffusion.solvers import DormandPrince, EulerMaruyama, Solver, as_solver
from ditlab.evaluation.metrics.by_data import measure_circles
from ditlab.runs.run import Run

EVALUATIONS = (1, 2, 5, 10, 20, 50)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
GRIDS: tuple[dict[str, Any], ...] = (
    {"grid": "uniform"},
    {"grid": "uniform", "shift": 0.5},
    {"grid": "uniform", "shift": 2.0},
    {"grid": "quadratic"},
    {"grid": "karras"},
)


def steps_for(solver: Solver, evaluations: int) -> int | None:
    """The most steps that take no more evaluations than that; None if even one takes more."""
    fitting = [steps for steps in range(1, evaluations + 1) if (solver.evaluations(steps) or 0) <= evaluations]
    return max(fitting, default=None)


def measure(run: Run, n: int, solver: str | Solver, steps: int, **grid: Any) -> dict[str, float]:
    """The figures of n samples, and how many evaluations each took."""
    before = run.process.evaluations
    figures = measure_circles(run.sample(n, steps=steps, solver=solver, seed=0, **grid).cpu(), 0)
    figures = {**figures, "evaluations": (run.process.evaluations - before) / n}
    print(solver, steps, grid, figures, file=sys.stderr, flush=True)
    return figures


def cell(figures: dict[str, float]) -> str:
    """Valid and energy distance."""
    return f"{100 * figures['valid']:.1f} % · {figures['energy_distance']:.3f}"


def table_of_solvers(run: Run, n: int) -> list[str]:
    """Rows of Markdown, one for each solver."""
    lines = ["| solver | " + " | ".join(map(str, EVALUATIONS)) + " |", "|---" * (len(EVALUATIONS) + 1) + "|"]
    solvers = {name: as_solver(name) for name in SOLVERS if name not in ("ddim", "dopri5")}
    solvers["euler-maruyama, last step mean"] = EulerMaruyama(last_step="mean")
    for name, solver in solvers.items():
        cells = []
        for evaluations in EVALUATIONS:
            steps = steps_for(solver, evaluations)
            cells.append("" if steps is None else cell(measure(run, n, solver, steps)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def table_of_grids(run: Run, n: int, evaluations: int) -> list[str]:
    """Rows of Markdown, one for each grid."""
    names = ("euler", "heun", "dpm-solver++", "dpm-solver++3m")
    lines = ["| grid | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for grid in GRIDS:
        cells = []
        for name in names:
            steps = steps_for(as_solver(name), evaluations)
            assert steps is not None
            cells.append(cell(measure(run, n, name, steps, **grid)))
        words = grid["grid"] + (f", shift {grid['shift']:g}" if "shift" in grid else "")
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return lines


def table_of_tolerances(run: Run, n: int) -> list[str]:
    """Rows of Markdown, one for each tolerance of Dormand–Prince."""
    lines = ["| tolerance | evaluations | valid · energy distance |", "|---|---|---|"]
    for tolerance in TOLERANCES:
        figures = measure(run, n, DormandPrince(tolerance, tolerance), 1)
        lines.append(f"| {tolerance:g} | {figures['evaluations']:.0f} | {cell(figures)} |")
    return lines


def machine() -> str:
    """The processor's name, and the threads in use."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, threads: {torch.get_num_threads()}"


def page(run: Run, n: int, command: str) -> str:
    """The whole page."""
    real = measure(run, n, "euler", 1)["energy_distance_floor"]
    device = next(run.process.parameters()).device.type
    return "\n".join(
        [
            "# Solvers",
            "",
            f"`{command}`",
            "",
            f"{n:,} samples with seed 0 from a run of the `circles` recipe (step {run.step:,}, averaged weights), for",
            "each solver and number of evaluations of the network. Cells have the share of valid circles and the",
            f"energy distance to 2,000 data (fresh data: {real:.3f}). A solver takes as many steps as fit into the",
            f"evaluations (Heun 25 in 50). Drawn on {device.upper()} ({machine()}), torch {torch.__version__}.",
            "",
            "## By evaluations",
            "",
            "Times are evenly spaced, the default.",
            "",
            *table_of_solvers(run, n),
            "",
            "`ddim` is another name for `euler`. `euler-maruyama` adds noise with w = t and ends on the predicted",
            "x0; in the other row it ends on the mean of the noisy step, as in SiT.",
            "",
            "## By grid, with 10 evaluations",
            "",
            "`uniform`: even in t; a `shift` s takes t to s·t/(1 + (s − 1)·t), towards the noise above 1. `quadratic`:",
            "even in √t, so denser near the data. `karras`: even in σ^(1/7) of σ = s/a, from 80 to 0.002 (Karras et",
            "al. 2022). For DDPM the default is `respaced`, even in its published steps; `leading` strides as in DDIM.",
            "",
            *table_of_grids(run, n, 10),
            "",
            "Third order extrapolates a parabola over log(a/s), whose steps are long here: `dpm-solver++` is better.",
            "",
            "## Dormand–Prince, adaptive",
            "",
            "Relative and absolute tolerance are equal; the worst of each 500 samples determines the steps.",
            "",
            *table_of_tolerances(run, n),
            "",
            "## On the command line, and in Python",
            "",
            "`ditlab sample RUN --solver dpm-solver++ --steps 10 --grid karras`. In Python `solver` can be an object",
            "with settings: `ditlab.Euler(eta=0.5)`, `ditlab.EulerMaruyama(form='constant', last_step='mean')`,",
            "`ditlab.DormandPrince(rtol=1e-4)`; and `grid` can be a tensor of decreasing times.",
            "",
        ]
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a circles run, or its name in runs/")
    parser.add_argument("--out", help="file to write; without, the page is printed")
    parser.add_argument("--n", type=int, default=1000, help="samples (1000)")
    options = parser.parse_args()
    run = load(options.run)
    if run.config.data.kind != "circles":
        parser.error(f"{options.run} holds {run.config.data.kind}: train one with ditlab train circles")
    text = page(run, options.n, shlex.join(["python", *sys.argv]))
    if options.out is None:
        print(text)
    else:
        Path(options.out).write_text(text)


if __name__ == "__main__":
    main()
