"""What a verb prints: results on stdout, as a table or as one JSON object; everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from ditlab.core.errors import printable, speaks

# What the table of an evaluation shows; how the figures came about is kept in eval.json, and printed by --json.
GLANCE = (
    *("run", "picture", "valid", "overlap", "energy_distance", "sliced_wasserstein", "accuracy", "frechet"),
    *("frechet_features", "kernel", "precision", "recall", "density", "coverage", "memorisation_ratio", "copied"),
    *("nll", "nll_unit", "nll_error", "n", "solver", "steps", "guidance", "evaluations"),
)


def say(message: str) -> None:
    """A word to the person at the terminal, from the first process if there are several."""
    if speaks():
        print("\n".join(map(printable, message.split("\n"))), file=sys.stderr, flush=True)


def say_which(message: str) -> None:
    """A word from any process of several."""
    print(f"ditlab: {printable(message)}", file=sys.stderr, flush=True)


def report(figures: dict[str, Any], as_json: bool) -> None:
    """Print results on stdout: one JSON object, or a table; of several processes the first one does."""
    if not speaks():
        return
    if as_json:
        print(json.dumps(figures, allow_nan=False))
        return
    rows = table(figures)
    width = max(len(key) for key in rows)
    for key, text in rows.items():
        print(f"{key:<{width}}  {text}")


def at_a_glance(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation that are read first, in the order of reading, with intervals and floors."""
    beside = ("", "_interval", "_floor", "_real")
    return {f"{key}{end}": figures[f"{key}{end}"] for key in GLANCE for end in beside if f"{key}{end}" in figures}


def table(figures: dict[str, Any]) -> dict[str, str]:
    """Every figure in words, with its interval and what real data score, where they are given, in its row."""
    rows, said = {}, set()
    for key, value in figures.items():
        if key in said:
            continue
        rows[key] = _readable(value)
        if (interval := figures.get(f"{key}_interval")) is not None:
            rows[key] += f"  [{_readable(interval[0])}, {_readable(interval[1])}]"
        for suffix in ("_floor", "_real"):
            if f"{key}{suffix}" in figures:
                rows[key] += f"  (real data: {_readable(figures[key + suffix])})"
        said |= {f"{key}{suffix}" for suffix in ("_interval", "_floor", "_real")}
    return rows


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{key}: {_readable(entry)}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))
