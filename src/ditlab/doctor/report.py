"""All checks of a run: the report of ``ditlab doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.doctor import data, loss, metrics
from ditlab.doctor.checks import Check, Verdict, unknown, verdict
from ditlab.doctor.evidence import Subject, read_subject
from ditlab.doctor.files import prepared
from ditlab.doctor.labels import labels
from ditlab.doctor.trials import bounds, squared_errors, training_trials
from ditlab.doctor.weights import averaged_weights, gradient_noise

NEED_WEIGHTS = ("loss by time", "averaged weights", "gradient noise", "labels")
MOST_READ = 2**30  # bytes of prepared data: about a second


@dataclass(frozen=True)
class Report:
    """All checks of a run."""

    run: str
    step: int
    steps: int
    checks: list[Check]

    @property
    def verdict(self) -> Verdict:
        """The verdict on all checks."""
        return verdict(self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        head = {"run": self.run, "step": self.step, "steps": self.steps, "verdict": self.verdict}
        return head | {"checks": [check.as_json() for check in self.checks]}


def examine(run: str | Path, n: int = 1024, device: str = "auto") -> Report:
    """Examine a run that is finished, training or broken, without writing to it or locking it.

    Args:
        run: its folder, or its name in ``runs/``.
        n: number of samples that losses are measured on.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: there is no such run, or its configuration is damaged.
    """
    subject = read_subject(run, device)
    checks = [data.checkpoint(subject)]
    if "metrics" in subject.problems:
        checks.append(unknown("training curve", subject.problems["metrics"]))
    else:
        checks += metrics.from_metrics(subject.config, subject.course)
    checks += _checks_of_weights(subject, n)
    if isinstance(subject.dataset, Images | Latents):
        checks.append(prepared(subject.folder, subject.config, most=MOST_READ))
    bad = data.bad_images(subject.folder, subject.config, subject.dataset)
    checks += [*([] if bad is None else [bad]), data.interruptions(subject)]
    return Report(str(subject.folder.path), subject.step, subject.config.steps, checks)


def _checks_of_weights(subject: Subject, n: int) -> list[Check]:
    """The checks that need the networks and the data, as far as both are available."""
    weights, dataset, config = subject.weights, subject.dataset, subject.config
    if dataset is None:
        checks = [unknown(name, subject.problems["data"]) for name in NEED_WEIGHTS if name != "averaged weights"]
        known = weights is not None and config.data.kind != "external"
        return checks + ([averaged_weights(config, weights)] if known and weights is not None else [])
    drawn = training_trials(dataset, n)
    seen = data.samples(subject, dataset, drawn)
    if weights is None:
        return [*(unknown(name, subject.problems["checkpoint"]) for name in NEED_WEIGHTS), seen]
    errors, raw = (squared_errors(process, drawn) for process in (weights.averaged, weights.raw))
    least = bounds(weights.averaged, drawn)
    held_out = loss.memorisation(subject, weights, errors, n)
    return [
        loss.against_reference(subject, weights, errors, drawn),
        loss.by_time(subject, weights, errors, raw, drawn, least),
        averaged_weights(config, weights),
        gradient_noise(config, dataset, weights, n),
        labels(dataset, weights, drawn, errors, fmean(least.linear)),
        seen,
        *([] if held_out is None else [held_out]),
    ]
