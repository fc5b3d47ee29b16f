"""The result of a check, the verdict on all of them, and common advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ditlab.config import Config
from ditlab.recipes import RECIPES

Mark = Literal["ok", "info", "warning", "bad", "unknown"]
Verdict = Literal["healthy", "warning", "ill", "unknown"]
ABOUT_LEARNING = ("training curve", "loss by time", "loss against the recipe's")


@dataclass(frozen=True)
class Check:
    """The result of one check; "info" is no judgement, and "unknown" a check that could not be made."""

    name: str
    mark: Mark
    figure: str  # the finding in words
    value: Any = None  # the finding for programs: numbers, lists and dictionaries of them
    expected: str | None = None  # what a healthy run has
    reason: str | None = None  # why it is a warning, bad or unknown
    advice: str | None = None  # what to do about it

    def marked(self, mark: Mark, reason: str, advice: str | None = None) -> Check:
        """The check with another mark and the reason for it."""
        return replace(self, mark=mark, reason=reason, advice=advice)

    def as_json(self) -> dict[str, Any]:
        """The check as a JSON object."""
        fields = asdict(self)
        return {"name": fields.pop("name"), "verdict": fields.pop("mark"), **fields, "value": _plain(self.value)}


def _plain(value: Any) -> Any:
    """The value with NaN and infinities as text, which JSON cannot represent otherwise."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def unknown(name: str, why: str) -> Check:
    """A check that could not be made, and why."""
    return Check(name, "unknown", "not known", reason=why)


def verdict(checks: Sequence[Check]) -> Verdict:
    """The worst mark decides; a healthy run also needs at least one good mark for learning."""
    marks = {check.mark for check in checks}
    if "bad" in marks:
        return "ill"
    if "warning" in marks:
        return "warning"
    learned = any(check.mark == "ok" and check.name in ABOUT_LEARNING for check in checks)
    return "healthy" if learned else "unknown"


def recipe_of(config: Config) -> Config | None:
    """The recipe for the same data; None for images and latents, whose recipes depend on the user's data."""
    kind = config.data.kind
    recipe: Config | None = RECIPES[kind]() if kind in RECIPES and kind not in ("images", "latents") else None
    return recipe


def smaller_lr(config: Config) -> str:
    """Advice to lower a learning rate that is too high."""
    recipe = recipe_of(config)
    if recipe is not None and config.lr > recipe.lr:
        times = config.lr / recipe.lr
        return f"--lr {config.lr:g} is {times:.3g} × the recipe's: start a new run with --lr {recipe.lr:g}"
    return f"start a new run with a smaller learning rate, such as --lr {config.lr / 10:g}, or a longer --warmup-steps"
