"""What a check says, and what all of them come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Mark = Literal["ok", "info", "warning", "bad", "unknown"]
Verdict = Literal["healthy", "warning", "ill", "unknown"]


OF_LEARNING = ("training curve", "loss by time", "loss against the recipe's")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what.
        mark: "ok", "warning" or "bad"; "info" where there is nothing to judge, "unknown" where it cannot be known.
        figure: what was found, in words for a line.
        value: what was found, for a program: numbers, lists and dictionaries of them.
        expected: what a healthy run has.
        reason: what makes it a warning or bad, or why it is not known.
        advice: what to do.
    """

    name: str
    mark: Mark
    figure: str
    value: Any = None
    expected: str | None = None
    reason: str | None = None
    advice: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The check for a program."""
        return {
            "name": self.name,
            "verdict": self.mark,
            "value": _plain(self.value),
            "figure": self.figure,
            "expected": self.expected,
            "reason": self.reason,
            "advice": self.advice,
        }


def _plain(value: Any) -> Any:
    """Numbers that JSON has, and words for those that it has not."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def unknown(name: str, why: str) -> Check:
    """A check that cannot be made, and why."""
    return Check(name, "unknown", "not known", reason=why)


def verdict(checks: Sequence[Check]) -> Verdict:
    """What the checks come to: the worst of those that could be judged, one at least of what was learned."""
    marks = {check.mark for check in checks}
    if "bad" in marks:
        return "ill"
    if "warning" in marks:
        return "warning"
    learned = any(check.mark == "ok" and check.name in OF_LEARNING for check in checks)
    return "healthy" if learned else "unknown"
