"""The figures of ``ditlab eval --nll``: the likelihood of held-out data under a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ditlab.data.dataset import HeldOut
from ditlab.data.points import Points
from ditlab.diffusion.likelihood import bits_per_dim, chosen_trace, log_likelihood
from ditlab.diffusion.process import Process

TOLERANCE = 1e-5  # relative and absolute, of a step
DATA = {"nats": 1000, "bits/dim": 256}  # default numbers of data
AT_A_TIME = 64  # images integrated together
Piece = Callable[[], list[float]]


def one_by_one(pieces: Sequence[Piece]) -> list[list[float]]:
    """The results of each piece of work, in order."""
    return [piece() for piece in pieces]


def measure_likelihood(
    process: Process,
    dataset: HeldOut,
    n: int | None = None,
    seed: int = 0,
    do_all: Callable[[Sequence[Piece]], list[list[float]]] = one_by_one,
) -> dict[str, Any]:
    """Mean negative log-likelihood of n held-out data (by default 1,000 points or 256 images), given their labels.

    In nats for continuous data; for images an upper bound in bits per dimension of the quantised values
    (``bits_per_dim``). ``nll_error`` is the standard error of the mean over the data; ``nll_floor`` is the score of the
    true density, if it is known. Images are integrated in fixed batches, which ``do_all`` may distribute.
    """
    unit = "nats" if dataset.levels is None else "bits/dim"
    x, cond = dataset.held_out(seed, DATA[unit] if n is None else n)
    size = AT_A_TIME if unit == "bits/dim" else len(x)

    def piece(first: int) -> list[float]:
        some = x[first : first + size]
        labels = {name: value[first : first + size] for name, value in cond.items()} or None
        options: dict[str, Any] = {"seed": seed, "first": first, "rtol": TOLERANCE, "atol": TOLERANCE}
        if dataset.levels is None:
            found = -log_likelihood(process, some, labels, **options)
        else:
            found = bits_per_dim(process, some, dataset.levels, labels, **options)
        return found.tolist()

    pieces = do_all([partial(piece, first) for first in range(0, len(x), size)])
    values = torch.tensor([value for values in pieces for value in values], dtype=torch.float64)
    figures = {
        "nll": float(values.mean()),
        "nll_unit": unit,
        "nll_error": float(values.std() / len(values) ** 0.5),
        "nll_n": len(values),
        "nll_trace": chosen_trace("auto", x[0].numel()),
        "nll_rtol": TOLERANCE,
        "nll_atol": TOLERANCE,
    }
    if isinstance(dataset, Points) and dataset.log_density is not None:
        figures["nll_floor"] = -float(dataset.log_density(x.double()).mean())
    return figures
