"""The loss by time of each recipe, as it was measured on the recipe's own training: what a run is compared with.

``reference.json`` is written by ``benchmarks/reference.py``, which says how.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from ditlab.config import Config, PointsData


class Reference(NamedTuple):
    """Where a run should be: the loss by bin of the time that the recipe's training had ``step`` steps in."""

    step: float
    loss: list[float]
    like: bool  # whether the run's network, optimizer and process are the recipe's


@cache
def curves() -> dict[str, dict[str, Any]]:
    """All that was measured, by name of the recipe."""
    told: dict[str, dict[str, Any]] = json.loads(files("ditlab.doctor").joinpath("reference.json").read_text())
    return told


def curve_name(config: Config) -> str:
    """The name that the curve of a configuration's data has, if there is one."""
    return f"points {config.data.name}" if isinstance(config.data, PointsData) else config.data.kind


def reference_for(config: Config, step: int) -> Reference | str:
    """Where a run of this configuration should be after ``step`` steps; or, in words, why that is not known.

    The recipe's training is looked at where it had taken as many steps, seen as many samples and done the same share
    of its schedule, whichever is the earliest: its learning rate falls to 0 at the end, and a longer one's has not yet.
    Between two measured steps the loss is taken along a line.
    """
    curve = curves().get(curve_name(config))
    if curve is None:
        return f"there is no reference for {config.data.kind}"
    process = config.process.model_dump(mode="json")
    if any(process[key] != curve["process"].get(key) for key in ("kind", "path") if key in process):
        return "the reference is of another process, whose loss means something else"
    recipe = curve["recipe"]
    at = min(step, step * config.batch_size / recipe["batch_size"], step / config.steps * recipe["steps"])
    steps = curve["steps"]
    if at < steps[0]:
        return f"it is too early: the reference begins at step {steps[0]}"
    right = min(bisect_right(steps, at), len(steps) - 1)
    left = right - 1
    share = min(1.0, (at - steps[left]) / (steps[right] - steps[left]))
    loss = [(1 - share) * a + share * b for a, b in zip(curve["loss"][left], curve["loss"][right], strict=True)]
    network = config.network.model_dump(mode="json")
    like = (network, config.optimizer.kind, process) == (recipe["network"], recipe["optimizer"], curve["process"])
    return Reference(at, loss, like)
