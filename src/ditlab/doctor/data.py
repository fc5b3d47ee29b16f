"""Checks of a run's data, its newest checkpoint, and interruptions of its training."""

from __future__ import annotations

import json
from collections.abc import Sized
from dataclasses import replace
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
from ditlab.doctor.trials import Trials
from ditlab.runs.checkpoint import LATEST, saved_steps, step_of
from ditlab.runs.folder import RunFolder

FEW = 32  # samples
LONGEST_LINE = 2**16  # bytes
DISTINCT = 0.9  # share of samples


def checkpoint(subject: Subject) -> Check:
    """How far has training come, and is the newest checkpoint whole and recent?"""
    name, config, weights, step = "checkpoint", subject.config, subject.weights, subject.step
    there = saved_steps(subject.folder.checkpoints)
    value = {"step": step, "steps": config.steps, "checkpoint": weights.step if weights else None, "saved": there}
    figure = (
        f"step {step:,} of {config.steps:,}, saved at {weights.step:,}" if weights else f"step {step:,}, none saved"
    )
    found = Check(name, "ok", figure, value, f"a whole one every {config.checkpoint_every:,} steps")
    if subject.passed_over or (weights is None and there):
        reason = "; ".join(subject.passed_over) or subject.problems["checkpoint"]
        advice = f"continue with: ditlab train --resume {subject.folder.path}"
        return found.marked("warning" if weights else "bad", reason, advice)
    if weights is None and step < config.checkpoint_every:
        return unknown(name, f"{figure}: the first one comes at step {min(config.checkpoint_every, config.steps):,}")
    if step - (weights.step if weights else 0) > 2 * config.checkpoint_every:
        return found.marked("bad", "the newest one is old", "check whether the disk is full")
    return found


def samples(subject: Subject, dataset: Dataset, drawn: Trials) -> Check:
    """How many distinct samples are there, and how often was each seen?"""
    name, config = "data", subject.config
    if not isinstance(dataset, Sized):
        seen = subject.step * config.batch_size
        return Check(name, "ok", f"fresh samples, {seen:,} so far", {"size": None, "seen": seen}, "many of them")
    size = len(dataset)
    looked = min(size, len(drawn.x0))
    if isinstance(dataset, Latents):  # every draw of the same latent differs
        kept = dataset.means(dataset.indices(0, 0, looked))
    else:
        kept = drawn.x0[:looked].flatten(1)
    distinct = len(torch.unique(kept, dim=0))
    epochs = subject.step * config.batch_size / size
    value = {"size": size, "looked_at": looked, "distinct": distinct, "seen": epochs}
    figure = f"{size:,} {'sample' if size == 1 else 'samples'}, each seen {epochs:,.0f} times"
    figure += f"; {distinct:,} of {looked:,} differ" if size > 1 else ""
    found = Check(name, "ok", figure, value, f"more than {FEW}, at least {DISTINCT:.0%} of them distinct")
    advice = "use more data: a network memorises few samples and can draw nothing else"
    if distinct == 1:
        return found.marked("bad", "all samples are the same", advice)
    if distinct < FEW:
        return found.marked("warning", "a network memorises so few", advice)
    if distinct < DISTINCT * looked:
        return found.marked("warning", f"{1 - distinct / looked:.0%} are copies of others", "remove the copies")
    return found


def bad_images(folder: RunFolder, config: Config, dataset: Dataset | None) -> Check | None:
    """How many files could not be used? None if the data are not files."""
    if config.data.kind not in ("images", "latents"):
        return None
    name = "bad images"
    try:
        with disk.opened(folder.quarantine_file, folder.path) as stream:
            first = stream.readline(LONGEST_LINE)
            bad = sum(1 for line in chain([first], stream) if line.strip())
    except FileNotFoundError:
        return unknown(name, f"there is no {folder.quarantine_file}")
    except InputError as error:
        return unknown(name, str(error))
    share = bad / max(1, bad + len(dataset)) if isinstance(dataset, Sized) else None
    figure = f"{bad:,} files cannot be used" + ("" if share is None else f", {share:.2%} of them")
    found = Check(name, "ok", figure, {"bad": bad, "share": share}, "none")
    return found.marked("warning", _first_reason(first), f"see {folder.quarantine_file}") if bad else found


def _first_reason(line: bytes) -> str:
    try:
        first = json.loads(line)
        return f"the first is {first['path']}: {first['reason']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "the list is damaged"


def _time(file: Path) -> float:
    """When a file was last written; 0 if it does not exist."""
    return file.stat().st_mtime if file.exists() else 0.0


def interruptions(subject: Subject) -> Check:
    """Did training hang, or give up?"""
    folder = subject.folder
    failures = [file for file in folder.made("failures") if file.suffix == ".json"]
    stalled = sorted(folder.path.glob("stalled*.txt"))  # one of each process
    written = max(_time(folder.metrics_file), _time(folder.checkpoints / LATEST))
    now = [file for file in stalled if _time(file) > written]
    value = {"failures": [file.name for file in failures], "stalled": bool(now), "stacks": [f.name for f in stalled]}
    found = Check("interruptions", "ok", "none", value, "none")
    if failures:
        figure, reason = f"{len(failures)} in failures/", f"training gave up at step {step_of(failures[-1]):,}"
        return replace(found, figure=figure).marked("bad", reason, f"see {failures[-1]} for the data of that step")
    if now:
        reason = "no step finished for too long, or another process was lost, and training was ended"
        advice = f"{now[0]} shows where it hung; continue with: ditlab train --resume {folder.path}"
        return replace(found, figure="it hung").marked("warning", reason, advice)
    return replace(found, figure=f"it hung before, but continued since: {stalled[0]}") if stalled else found
