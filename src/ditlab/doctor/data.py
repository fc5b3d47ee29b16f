"""Checks of the data and of the files of a run."""

from __future__ import annotations

import json
from collections.abc import Sized
from itertools import chain
from pathlib import Path

import torch

from ditlab.config import Config
from ditlab.core import disk
from ditlab.core.errors import InputError
from ditlab.data.dataset import Dataset
from ditlab.data.latents.dataset import Latents
from ditlab.doctor.checks import Check, unknown
from ditlab.doctor.evidence import Subject
from ditlab.doctor.losses import Trials
from ditlab.runs.checkpoint import LATEST, saved_steps, step_of
from ditlab.runs.folder import RunFolder

FEW = 32  # samples
MOST_OF_A_LINE = 2**16  # bytes
DISTINCT = 0.9  # share of samples


def checkpoint(subject: Subject) -> Check:
    """How far has training come, and is the newest checkpoint whole and near?"""
    name, config, weights = "checkpoint", subject.config, subject.weights
    step = subject.step
    there = saved_steps(subject.folder.checkpoints)
    value = {"step": step, "steps": config.steps, "checkpoint": weights.step if weights else None, "saved": there}
    figure = (
        f"step {step:,} of {config.steps:,}, saved at {weights.step:,}" if weights else f"step {step:,}, none saved"
    )
    expected = f"a whole one every {config.checkpoint_every:,} steps"
    if subject.passed_over or (weights is None and there):
        reason = "; ".join(subject.passed_over) or subject.problems["checkpoint"]
        advice = f"go on with: ditlab train --resume {subject.folder.path}"
        return Check(name, "warning" if weights else "bad", figure, value, expected, reason, advice)
    if weights is None and step < config.checkpoint_every:
        return unknown(name, f"{figure}: the first one comes at step {min(config.checkpoint_every, config.steps):,}")
    if step - (weights.step if weights else 0) > 2 * config.checkpoint_every:
        return Check(name, "bad", figure, value, expected, "the newest one is old", "see whether the disk is full")
    return Check(name, "ok", figure, value, expected)


def samples(subject: Subject, dataset: Dataset, drawn: Trials) -> Check:
    """How many distinct samples are there, and how often was each seen?"""
    name, config = "data", subject.config
    if not isinstance(dataset, Sized):
        seen = subject.step * config.batch_size
        return Check(name, "ok", f"fresh samples, {seen:,} so far", {"size": None, "seen": seen}, "many of them")
    size = len(dataset)
    looked = min(size, len(drawn.x0))
    if isinstance(dataset, Latents):  # of which each draw is another
        kept = dataset.means(dataset.indices(0, 0, looked))
    else:
        kept = drawn.x0[:looked].flatten(1)
    distinct = len(torch.unique(kept, dim=0))
    epochs = subject.step * config.batch_size / size
    value = {"size": size, "looked_at": looked, "distinct": distinct, "seen": epochs}
    figure = f"{size:,} {'sample' if size == 1 else 'samples'}, each seen {epochs:,.0f} times"
    figure += f"; {distinct:,} of {looked:,} differ" if size > 1 else ""
    expected = f"more than {FEW}, at least {DISTINCT:.0%} of them distinct"
    advice = "bring more data: a network learns few samples by heart and can draw nothing else"
    if distinct == 1:
        return Check(name, "bad", figure, value, expected, "the data are one sample", advice)
    if distinct < FEW:
        return Check(name, "warning", figure, value, expected, "so few are learned by heart", advice)
    if distinct < DISTINCT * looked:
        reason = f"{1 - distinct / looked:.0%} are copies of others"
        return Check(name, "warning", figure, value, expected, reason, "take out the copies")
    return Check(name, "ok", figure, value, expected)


def bad_images(folder: RunFolder, config: Config, dataset: Dataset | None) -> Check | None:
    """How many files could not be used? None for data that are no files."""
    if config.data.kind not in ("images", "latents"):
        return None
    name = "bad images"
    try:
        with disk.opened(folder.quarantine_file, folder.path) as stream:
            first = stream.readline(MOST_OF_A_LINE)
            bad = sum(1 for line in chain([first], stream) if line.strip())
    except FileNotFoundError:
        return unknown(name, f"there is no {folder.quarantine_file}")
    except InputError as error:
        return unknown(name, str(error))
    good = len(dataset) if isinstance(dataset, Sized) else None
    share = None if good is None else bad / max(1, bad + good)
    value, expected = {"bad": bad, "share": share}, "none"
    figure = f"{bad:,} files cannot be used" + ("" if share is None else f", {share:.2%} of them")
    if bad:
        reason = _first_reason(first)
        return Check(name, "warning", figure, value, expected, reason, f"see {folder.quarantine_file}")
    return Check(name, "ok", figure, value, expected)


def _first_reason(line: bytes) -> str:
    try:
        first = json.loads(line)
        return f"the first is {first['path']}: {first['reason']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "the list is damaged"


def _time(file: Path) -> float:
    """When a file was written last; 0 for one that is not there."""
    return file.stat().st_mtime if file.exists() else 0.0


def interruptions(subject: Subject) -> Check:
    """Did training hang, or give up?"""
    name, folder = "interruptions", subject.folder
    failures = [file for file in folder.made("failures") if file.suffix == ".json"]
    stalled = sorted(folder.path.glob("stalled*.txt"))  # one of each process
    now = [
        file for file in stalled if _time(file) > max(_time(folder.metrics_file), _time(folder.checkpoints / LATEST))
    ]
    value = {"failures": [file.name for file in failures], "stalled": bool(now), "stacks": [f.name for f in stalled]}
    if failures:
        reason = f"training gave up at step {step_of(failures[-1]):,}"
        advice = f"see {failures[-1]}: it tells what the step was made of"
        return Check(name, "bad", f"{len(failures)} in failures/", value, "none", reason, advice)
    if now:
        reason = "no step was finished for too long, or another process was lost, and training was ended"
        advice = f"see {now[0]}: it tells where it hung; ditlab train --resume {folder.path} goes on"
        return Check(name, "warning", "it hung", value, "none", reason, advice)
    if stalled:
        return Check(name, "ok", f"it hung before, and has gone on since: {stalled[0]}", value, "none")
    return Check(name, "ok", "none", value, "none")
