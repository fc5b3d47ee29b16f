"""The loss by time of each recipe during its own training, to compare runs with.

``benchmarks/reference.py`` writes ``reference.json``, and says how.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from ditlab.config import Config, PointsData


class Reference(NamedTuple):
    """The loss by bin of the time that the recipe's training had at ``step``."""

    step: float
    loss: list[float]
    like: bool  # whether the run has the recipe's network, optimizer and process


@cache
def curves() -> dict[str, dict[str, Any]]:
    """The measured curves, by name of the recipe."""
    told: dict[str, dict[str, Any]] = json.loads(files("ditlab.doctor").joinpath("reference.json").read_text())
    return told


def curve_name(config: Config) -> str:
    """The name of the curve for a configuration's data."""
    return f"points {config.data.name}" if isinstance(config.data, PointsData) else config.data.kind


def reference_for(config: Config, step: int) -> Reference | str:
    """The reference for a run of this configuration after ``step`` steps; or, in words, why there is none.

    It is taken where the recipe had done as many steps, seen as many samples or completed the same share of its
    schedule, whichever is earliest (the learning rate falls to 0 at the end, so longer runs are behind). The loss is
    interpolated linearly between measured steps.
    """
    curve = curves().get(curve_name(config))
    if curve is None:
        return f"there is no reference for {config.data.kind}"
    process = config.process.model_dump(mode="json")
    if any(process[key] != curve["process"].get(key) for key in ("kind", "path") if key in process):
        return "the recipe has another process, whose loss means something else"
    recipe = curve["recipe"]
    at = min(step, step * config.batch_size / recipe["batch_size"], step / config.steps * recipe["steps"])
    steps = curve["steps"]
    if at < steps[0]:
        return f"too early: the reference begins at step {steps[0]}"
    right = min(bisect_right(steps, at), len(steps) - 1)
    left = right - 1
    share = min(1.0, (at - steps[left]) / (steps[right] - steps[left]))
    loss = [(1 - share) * a + share * b for a, b in zip(curve["loss"][left], curve["loss"][right], strict=True)]
    network = config.network.model_dump(mode="json")
    theirs = type(config.process).model_validate(curve["process"])  # settings added since then have their defaults
    like = (network, config.optimizer.kind, config.process) == (recipe["network"], recipe["optimizer"], theirs)
    return Reference(at, loss, like)
