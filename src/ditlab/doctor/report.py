"""All checks of a run: what ``ditlab doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.doctor import data
from ditlab.doctor import loss as fit
from ditlab.doctor import metrics as curve
from ditlab.doctor.checks import Check, Verdict, unknown, verdict
from ditlab.doctor.evidence import Subject, read_subject
from ditlab.doctor.files import prepared
from ditlab.doctor.labels import labels
from ditlab.doctor.losses import bounds, squared_errors, training_trials
from ditlab.doctor.weights import averaged_weights, gradient_noise

NEED_WEIGHTS = ("loss by time", "averaged weights", "gradient noise", "labels")
MOST_READ = 2**30  # bytes of prepared data: about a second


@dataclass(frozen=True)
class Report:
    """What was found."""

    run: str
    step: int
    steps: int
    checks: list[Check]

    @property
    def verdict(self) -> Verdict:
        """What the checks come to."""
        return verdict(self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report for a program."""
        head = {"run": self.run, "step": self.step, "steps": self.steps, "verdict": self.verdict}
        return head | {"checks": [check.as_json() for check in self.checks]}


def examine(run: str | Path, n: int = 1024, device: str = "auto") -> Report:
    """Look at a run that is finished, in training or broken; nothing is written to it and no lock is taken.

    Args:
        run: its folder, or its name in ``runs/``.
        n: samples that losses are measured on.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: there is no such run, or its configuration is damaged.
    """
    subject = read_subject(run, device)
    checks = [data.checkpoint(subject), *_of_metrics(subject), *_of_weights(subject, n)]
    if isinstance(subject.dataset, Images | Latents):
        checks.append(prepared(subject.folder, subject.config, most=MOST_READ))
    more = [data.bad_images(subject.folder, subject.config, subject.dataset), data.interruptions(subject)]
    checks += [check for check in more if check is not None]
    return Report(str(subject.folder.path), subject.step, subject.config.steps, checks)


def _of_metrics(subject: Subject) -> list[Check]:
    if "metrics" in subject.problems:
        return [unknown("training curve", subject.problems["metrics"])]
    return curve.from_metrics(subject.config, subject.course)


def _of_weights(subject: Subject, n: int) -> list[Check]:
    """The checks that need the networks and the data, as far as both are there."""
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
    held_out = fit.memorisation(subject, weights, errors, n)
    return [
        fit.against_reference(subject, errors, drawn),
        fit.by_time(subject, errors, raw, drawn, least),
        averaged_weights(config, weights),
        gradient_noise(config, dataset, weights, n),
        labels(dataset, weights, drawn, errors, fmean(least.linear)),
        seen,
        *([] if held_out is None else [held_out]),
    ]
