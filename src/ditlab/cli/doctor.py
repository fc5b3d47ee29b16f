"""``ditlab doctor`` and ``check``: whether a run is healthy, and whether its files are whole."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ditlab.cli.options import CheckOptions, DoctorOptions, parse
from ditlab.core.errors import printable

if TYPE_CHECKING:
    from ditlab.doctor.checks import Check
    from ditlab.doctor.report import Report

SIGNS = {"ok": "✓", "info": "·", "warning": "!", "bad": "✗", "unknown": "?"}
WORDS = {
    "healthy": "healthy",
    "warning": "nothing is wrong for sure, but look at what is marked !",
    "ill": "ill",
    "unknown": "nothing can be said yet",
}
WIDTH = 120


def doctor(arguments: Sequence[str]) -> int:
    """Examine a run; 1 if it is ill."""
    options = parse(DoctorOptions, arguments, "ditlab doctor")
    from ditlab.doctor.report import examine

    report = examine(options.run, options.n, options.device)
    if options.as_json:
        print(json.dumps(report.as_json(), allow_nan=False))
    else:
        print("\n".join(lines(report)))
    return 1 if report.verdict == "ill" else 0


def check(arguments: Sequence[str]) -> int:
    """Verify a run; 1 if something in it is damaged."""
    options = parse(CheckOptions, arguments, "ditlab check")
    from ditlab.cli.progress import watching
    from ditlab.doctor.files import verify

    with watching() as watcher:
        found = verify(options.run, watcher.preparing)
    if options.as_json:
        print(json.dumps(found.as_json(), allow_nan=False))
    else:
        print("\n".join(table(found.checks)))
        named = f": {', '.join(found.damaged)}" if found.damaged else ""
        print(f"\n{printable(found.run)} is {'damaged' if found.damaged else 'whole'}{named}")
    return 1 if found.damaged else 0


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    yield from table(report.checks)
    ill = [check.name for check in report.checks if check.mark == "bad"]
    named = f": {', '.join(ill)}" if ill else ""
    yield ""
    yield printable(f"{report.run}, step {report.step:,} of {report.steps:,}: {WORDS[report.verdict]}{named}")


def table(checks: Sequence[Check]) -> Iterator[str]:
    """Checks for people, some lines each."""
    width = max(len(check.name) for check in checks)
    indent = " " * (width + 4)
    for check in checks:
        said = check.figure if check.mark != "unknown" else f"not known: {check.reason}"
        yield from _wrapped(f"{SIGNS[check.mark]} {check.name:<{width}}  ", said, indent)
        if check.mark in ("warning", "bad", "info") and check.reason:
            yield from _wrapped(indent, check.reason, indent)
        if check.mark in ("warning", "bad"):
            if check.expected is not None:
                yield from _wrapped(indent, f"expected: {check.expected}", indent)
            yield from _wrapped(f"{indent}→ ", check.advice or "", f"{indent}  ")


def _wrapped(first: str, text: str, others: str) -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False)
