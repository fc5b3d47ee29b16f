"""Measure a run: draw samples, compare them with real data, and say with what they were drawn."""

from __future__ import annotations

from typing import Any

from ditlab.build import build_dataset
from ditlab.config import CirclesData, DigitsData, PointsData
from ditlab.data.datasets import HeldOut
from ditlab.errors import InputError
from ditlab.evaluation.likelihood import measure_likelihood
from ditlab.evaluation.measures import measure_circles, measure_digits, measure_points
from ditlab.run import Run


def evaluate(
    run: Run,
    n: int = 1000,
    *,
    steps: int = 25,
    solver: str = "heun",
    guidance: float | None = None,
    seed: int = 0,
    nll: bool = False,
    nll_n: int | None = None,
) -> dict[str, Any]:
    """The figures of ``ditlab eval``: those of the data's kind, and everything that decided them.

    ``evaluations`` is how often the network ran for each sample, the two halves of a guided pass counted as one. With
    ``nll``, also the negative log-likelihood of ``nll_n`` held-out data, without guidance.

    Raises:
        InputError: too few samples for the figures.
    """
    if isinstance(run.config.data, DigitsData) and n < 100:
        raise InputError(f"--n {n} is too few for the Fréchet distance of 64 features: use at least 100")
    samples = run.sample(n, steps=steps, solver=solver, guidance=guidance, seed=seed).cpu()
    match run.config.data:
        case CirclesData():
            figures = measure_circles(samples, seed)
        case PointsData(name=name):
            figures = measure_points(samples, name, seed)
        case DigitsData():
            labels = run.labels(n)
            assert labels is not None
            figures = measure_digits(samples, labels) | {"guidance": 1.0 if guidance is None else guidance}
    if nll:
        dataset = build_dataset(run.config)
        if not isinstance(dataset, HeldOut):
            raise InputError(f"all of the {run.config.data.kind} are trained on: drop --nll")
        figures |= measure_likelihood(run.process, dataset, nll_n, seed)
    return figures | {
        "n": n,
        "seed": seed,
        "solver": solver,
        "steps": steps,
        "evaluations": run.process.evaluations(solver, steps),
        "run_step": run.step,
    }
