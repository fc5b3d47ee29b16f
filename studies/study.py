"""A study is a claim, a measurement that gives findings, and a plot of them. This module runs studies.

    python -m studies.gates            the quick tier
    python -m studies.gates --full     the full tier, whose results are kept in the repository
    python -m studies                  all, in order

A study writes ``studies/results/TIER/NAME.json`` and ``NAME.png`` at its end, and nothing before. Its networks stay in
``runs/studies/TIER``, so an interrupted study resumes, and several studies share networks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ditlab.core.disk import write_atomically
from ditlab.core.errors import InputError
from studies.intervals import Measured, Verdict
from studies.training import FULL, QUICK, Stopped, Tier, Workers, elapsed

ROOT = Path(__file__).parents[1]


class Finding(NamedTuple):
    """One claim and its verdict; ``reason`` names the deciding figures."""

    claim: str
    measurement: str
    verdict: Verdict
    reason: str
    figures: dict[str, Measured]


@dataclass
class Outcome:
    """What a study measured.

    Attributes:
        findings: one for each claim.
        rows: a table, each row a mapping from column to text or number.
        curves: further data of the plot, as plain lists and numbers.
    """

    findings: list[Finding]
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)


class Study(NamedTuple):
    """One script.

    Attributes:
        name: of the module and its results.
        claim: the claim, in a sentence.
        measure: (tier, workers) -> the outcome.
        draw: contents of the JSON file -> a plot.
    """

    name: str
    claim: str
    measure: Callable[[Tier, Workers], Outcome]
    draw: Callable[[dict[str, Any]], Figure]


def perform(study: Study, tier: Tier, workers: Workers, results: Path) -> dict[str, Any]:
    """Measure, draw, and only then write ``results/NAME.json`` and its plot; returns the file's contents.

    Two times are recorded. ``wall_seconds_of_call`` is the wall time of this call, including the training it did.
    ``training_process_seconds`` is the time of training in one-thread processes, summed over all runs that the study
    uses, even if they were trained earlier or for another study.
    """
    begun = time.perf_counter()
    outcome = study.measure(tier, workers)
    full = " --full" if tier is FULL else ""
    told: dict[str, Any] = {
        "study": study.name,
        "tier": tier.name,
        "claim": study.claim,
        "findings": [
            {**finding._asdict(), "figures": {name: each._asdict() for name, each in finding.figures.items()}}
            for finding in outcome.findings
        ],
        "rows": outcome.rows,
        "curves": outcome.curves,
        "command": f"python -m studies.{study.name}{full}",
        "machine": machine(workers.count),
        "wall_seconds_of_call": elapsed(begun),
        "training_process_seconds": round(sum(trained.seconds for trained in workers.trained.values()), 1),
        "steps": tier.steps,
        "seeds": list(tier.seeds),
        "commit": commit(),
    }
    told = rounded(told)
    figure = study.draw(told)
    text = as_json(told)
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / f"{study.name}.png", lambda path: save(figure, path))
    write_atomically(results / f"{study.name}.json", lambda path: path.write_text(text))
    return told


def save(figure: Figure, path: Path) -> None:
    """Write a plot as PNG; the same plot gives the same bytes on the same machine."""
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})


def as_json(told: dict[str, Any]) -> str:
    """JSON for people and for git: lists of numbers and text stay on one line."""
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"


def rounded(value: Any) -> Any:
    """Floats in nested lists and mappings to six digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def machine(workers: int) -> dict[str, Any]:
    """The hardware and versions, without the machine's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "processes": max(1, workers),
        "threads_each": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The commit of the sources, with a + if they have changed since; None outside a repository."""
    try:
        told = [
            subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--", "src", "studies", ":(exclude)studies/results"),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0] + ("+" if told[1] else "")


def summary(told: dict[str, Any]) -> str:
    """A result as printed on the terminal."""
    lines = [f"  {finding['verdict']}: {finding['claim']}\n    {finding['reason']}" for finding in told["findings"]]
    spent = f"  {told['wall_seconds_of_call']:.0f} s by the clock"
    if told["training_process_seconds"]:
        spent += f"; its runs took {told['training_process_seconds']:.0f} s of training, summed over processes"
    return "\n".join([*lines, spent])


def main(studies: Study | Sequence[Study], arguments: Sequence[str] | None = None) -> int:
    """Run studies from the command line; returns the exit status."""
    studies = [studies] if isinstance(studies, Study) else list(studies)
    one = studies[0].name if len(studies) == 1 else None
    parser = argparse.ArgumentParser(prog=f"python -m studies{'.' + one if one else ''}")
    parser.add_argument("--full", action="store_true", help="train to the end, as for the results in the repository")
    parser.add_argument("--workers", type=int, help="processes, one per core by default; 0: only this one")
    if one is None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="which studies; all by default")
    chosen = parser.parse_args(arguments)
    names = getattr(chosen, "names", [])
    if unknown := set(names) - {study.name for study in studies}:
        parser.error(f"no study {', '.join(sorted(unknown))}; there are {', '.join(study.name for study in studies)}")
    if chosen.workers is not None and chosen.workers < 0:
        parser.error(f"--workers {chosen.workers}: use 0 or more")
    tier = FULL if chosen.full else QUICK
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(1)  # as in the other processes, so that timings are comparable
    try:
        for study in [study for study in studies if not names or study.name in names]:
            print(f"{study.name}: {study.claim}", flush=True)
            workers = Workers(Path("runs/studies") / tier.name, chosen.workers, lambda text: print(text, flush=True))
            results = ROOT / "studies" / "results" / tier.name
            print(summary(perform(study, tier, workers, results)), flush=True)
    except (Stopped, KeyboardInterrupt):
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
