"""Check that every file of a run is as it was written (``ditlab check``), without changing any."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ditlab.config import Config, ExternalData
from ditlab.core import disk
from ditlab.core.errors import DamagedCheckpoint, InputError
from ditlab.data.images.dataset import Images
from ditlab.data.images.source import Progress
from ditlab.data.latents.check import check_store
from ditlab.data.latents.dataset import Latents
from ditlab.doctor.checks import Check, unknown
from ditlab.evaluation.record import FILE, read_evaluations
from ditlab.networks.costs import on_meta
from ditlab.runs import metrics
from ditlab.runs.build import build_dataset, build_network
from ditlab.runs.checkpoint import (
    LATEST,
    describe_part,
    files_of,
    read_facts,
    read_tensors,
    saved_steps,
    step_name,
    verified,
)
from ditlab.runs.folder import MADE, STEP, RunFolder
from ditlab.runs.weights import differences
from ditlab.training.ema import PowerAverages
from ditlab.training.optim import Optimizers
from ditlab.training.posthoc_ema import read_snapshot

NAMED = 3  # most damaged files listed
READABLE = "make it a readable folder"
PARTS = ("model", "ema", "optimizer", "averages")


@dataclass(frozen=True)
class Verified:
    """All checks of a run's files."""

    run: str
    checks: list[Check]

    @property
    def damaged(self) -> list[str]:
        """The names of the checks that found damage."""
        return [check.name for check in self.checks if check.mark == "bad"]

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        head = {"run": self.run, "verdict": "damaged" if self.damaged else "whole"}
        return head | {"checks": [check.as_json() for check in self.checks]}


def verify(run: str | Path, progress: Progress | None = None) -> Verified:
    """Compare the files of a run with their checksums and formats; it may be training.

    Args:
        run: its folder, or its name in ``runs/``.
        progress: called with how much of its data was read, and how much there is.

    Raises:
        InputError: there is no such run.
    """
    folder = RunFolder.find(run)
    config, network, configuration = _configuration(folder)
    checks = [
        configuration,
        _metrics(folder),
        *_checkpoints(folder, config, network),
        _each("snapshots", folder, "averages", lambda file: _snapshot(file, config, network)),
        _each("recordings", folder, "probes", _recording),
        _each("pictures", folder, "samples", _picture),
    ]
    if (folder.path / FILE).exists():
        checks.append(_evaluations(folder))
    if config is not None:
        checks.append(prepared(folder, config, progress))
    return Verified(str(folder.path), checks)


def said(error: Exception) -> str:
    """An error in words, with the file it is about."""
    if isinstance(error, DamagedCheckpoint):
        return error.reason
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def _configuration(folder: RunFolder) -> tuple[Config | None, nn.Module | None, Check]:
    """The configuration and its network on the "meta" device, each None if it cannot be read or built."""
    name = "configuration"
    try:
        config = folder.read_config()
    except (InputError, OSError) as error:
        advice = f"restore {folder.config_file} from a copy"
        return None, None, Check(name, "bad", "damaged", reason=said(error), advice=advice)
    try:
        network = on_meta(lambda: build_network(config, build_dataset(config)))
    except (InputError, OSError) as error:
        return config, None, unknown(name, f"its network cannot be built: {said(error)}")
    return config, network, Check(name, "ok", f"{config.network.kind} on {config.data.kind}")


def _metrics(folder: RunFolder) -> Check:
    try:
        lines = sum(1 for _ in metrics.read(folder.metrics_file, whole=True))
    except (InputError, OSError) as error:
        advice = "restore the line or the file from a copy, or delete it"
        return Check("metrics", "bad", "damaged", reason=said(error), advice=advice)
    return Check("metrics", "ok", f"{lines:,} {'line' if lines == 1 else 'lines'}", {"lines": lines})


def _checkpoints(folder: RunFolder, config: Config | None, network: nn.Module | None) -> Iterator[Check]:
    """A check of each checkpoint, and of the file that names the newest."""
    try:
        steps = saved_steps(folder.checkpoints)
    except (InputError, OSError) as error:
        yield Check("checkpoints", "bad", "not readable", reason=said(error), advice=READABLE)
        return
    named = folder.checkpoints / LATEST
    if not steps and os.path.lexists(named):
        reason, advice = f"{named} exists, but no checkpoint", "restore the checkpoints from a copy"
        yield Check("checkpoints", "bad", "missing", reason=reason, advice=advice)
    elif not steps:
        yield unknown("checkpoints", "there is none yet")
    for step in steps:
        if (check := _checkpoint(folder, step, config, network)) is not None:
            yield check
    if steps and not _names_one(named, steps):
        advice = f"ditlab train --resume {folder.path} rewrites it"
        reason = f"{named} names a checkpoint that does not exist"
        yield Check("newest", "bad", "not named", reason=reason, advice=advice)


def _names_one(file: Path, steps: list[int]) -> bool:
    with suppress(InputError, OSError):
        return disk.read(file, 100, file.parent).strip() in [step_name(step).encode() for step in steps]
    return False


def _checkpoint(folder: RunFolder, step: int, config: Config | None, network: nn.Module | None) -> Check | None:
    """Check every byte against the manifest and every tensor against the configuration; None if it was deleted."""
    name, checkpoint = f"checkpoint {step:,}", folder.checkpoints / step_name(step)
    try:
        verified(folder.checkpoints, step)
        read_facts(checkpoint)
        parts = {part: describe_part(checkpoint, part) for part in PARTS if files_of(checkpoint, part)}
        likes = {part: {key: entry.like for key, entry in entries.items()} for part, entries in parts.items()}
        if config is not None and network is not None:
            _must_fit(likes, config, network)
    except (InputError, OSError) as error:
        if not checkpoint.exists():  # the training process deleted it
            return None
        advice = "remove it, or restore it from a copy; another checkpoint is used meanwhile"
        return Check(name, "bad", "damaged", reason=said(error), advice=advice)
    files = [file for part in parts for file in files_of(checkpoint, part)]
    size, tensors = sum(file.stat().st_size for file in files), sum(map(len, parts.values()))
    figure = f"{tensors:,} tensors in {len(files)} files, {size / 1e6:,.1f} MB"
    return Check(name, "ok", figure, {"tensors": tensors, "files": len(files), "bytes": size})


def _must_fit(parts: Mapping[str, Mapping[str, Tensor]], config: Config, network: nn.Module) -> None:
    """Raise an ``InputError`` if names, shapes or dtypes of a checkpoint's tensors differ from the configuration's."""
    wanted = {"model": network.state_dict(), "ema": network.state_dict()}
    if config.averages:
        wanted["averages"] = PowerAverages(network, config.averages).state_dict()
    for part, own in wanted.items():
        if part not in parts:
            raise InputError(f"it has no {part}, which the configuration requires")
        if problems := differences(parts[part], own):
            raise InputError(f"{part} does not fit the configuration: {problems[0][:160]}")
    if problems := Optimizers(network, config).differences(dict(parts.get("optimizer", {}))):
        raise InputError(f"optimizer does not fit the configuration: {problems[0][:160]}")


def _each(name: str, folder: RunFolder, kind: str, look: Callable[[Path], object]) -> Check:
    """Check that each file of a step in one of a run's folders can be read and is not a link."""
    place = folder.path / kind
    try:
        found = [place / entry for entry in disk.names(place, folder.path) if re.fullmatch(STEP + MADE[kind], entry)]
    except (InputError, OSError) as error:
        return Check(name, "bad", "not readable", reason=said(error), advice=READABLE)
    wrong = []
    for file in found:
        try:
            disk.must_be_file(file, folder.path)
            look(file)
        except Exception as error:  # readers raise all kinds of errors for damaged files
            if os.path.lexists(file):
                named = "" if isinstance(error, InputError) else f"{file} is damaged: "
                wrong.append(f"{named}{said(error)}"[:240])
    value = {"files": len(found), "damaged": len(wrong)}
    if wrong:
        reason = "; ".join(wrong[:NAMED]) + (f" and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else "")
        figure = f"{len(wrong):,} of {len(found):,} damaged"
        return Check(name, "bad", figure, value, reason=reason, advice="remove them")
    return Check(name, "ok", f"{len(found):,}" if found else "none", value)


def _snapshot(file: Path, config: Config | None, network: nn.Module | None) -> None:
    tensors = read_snapshot(file)
    if config is not None and network is not None:
        own = {name: tensor.half() for name, tensor in PowerAverages(network, config.averages).state_dict().items()}
        if problems := differences(tensors, own):
            raise InputError(f"{file} belongs to another run: {problems[0][:160]}")


def _recording(file: Path) -> None:
    tensors = read_tensors(file)
    gate = tensors.get("gate")
    times = 0 if gate is None else len(gate)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = tuple(gate.shape) if gate is not None else ()
    wanted = {"t": (times,), "gate": blocks, "contribution": blocks, "effective_depth": (times,)}
    if len(blocks) != 3 or shapes != wanted:
        raise InputError(f"{file} is not a recording of gates")


def _picture(file: Path) -> None:
    with Image.open(file) as picture:
        picture.verify()


def _evaluations(folder: RunFolder) -> Check:
    try:
        found = read_evaluations(folder.path)
    except (InputError, OSError) as error:
        return Check("evaluations", "bad", "damaged", reason=said(error), advice=f"remove {folder.path / FILE}")
    return Check("evaluations", "ok", f"{len(found):,}", {"evaluations": len(found)})


def prepared(folder: RunFolder, config: Config, progress: Progress | None = None, most: float = math.inf) -> Check:
    """Check that prepared data are undamaged, and the same as the run was trained on.

    Args:
        folder: the run's folder.
        config: the run's configuration.
        progress: called with how much was read, and how much there is.
        most: most bytes to read; larger data are not checked.
    """
    name = "prepared data"
    if isinstance(config.data, ExternalData):
        return unknown(name, "it was trained elsewhere: its data are not here")
    dataset = build_dataset(config)
    try:
        if isinstance(dataset, Images):
            return _images(name, folder, dataset, progress, most)
        if isinstance(dataset, Latents):
            return _latents(name, folder, dataset, progress, most)
    except (InputError, OSError) as error:
        if isinstance(dataset, Latents) and Path(dataset.path).exists():
            return Check(name, "bad", "damaged", reason=said(error), advice="restore the store from a copy")
        return unknown(name, said(error))
    return Check(name, "ok", "none: samples are made when needed")


def _images(name: str, folder: RunFolder, dataset: Images, progress: Progress | None, most: float) -> Check:
    found = dataset.examine(progress, most)
    if found is None:
        return unknown(name, "these images are not prepared here; training does that")
    figure, value = f"{found.bytes / 1e6:,.1f} MB", {"folder": str(found.folder), "bytes": found.bytes}
    if found.damaged:
        advice = f"remove {found.folder}: the data are then prepared again when needed"
        return Check(name, "bad", "damaged", value, "its checksums", "; ".join(found.damaged), advice)
    if found.unknown is not None:
        return unknown(name, f"{found.folder}: {found.unknown}")
    return _trained_on(Check(name, "ok", figure, value), folder, dataset.prepare())


def _latents(name: str, folder: RunFolder, dataset: Latents, progress: Progress | None, most: float) -> Check:
    size = sum(shard.bytes for shard in dataset.index.shards)
    if size > most:
        return unknown(name, f"{size / 1e9:,.1f} GB were not read; ditlab check reads them")
    found = check_store(dataset.path, progress)
    value = {"folder": dataset.path, "bytes": size}
    if found.damaged:
        reason, advice = found.damaged[0], "restore it from a copy, or encode it again with the same command"
        return Check(name, "bad", f"{len(found.damaged):,} shards damaged", value, "its checksums", reason, advice)
    return _trained_on(Check(name, "ok", f"{size / 1e6:,.1f} MB", value), folder, dataset.fingerprint)


def _trained_on(check: Check, folder: RunFolder, fingerprint: str) -> Check:
    """The check, or a warning if the newest checkpoint was trained on other data."""
    then = None
    with suppress(InputError, OSError):
        then = read_facts(folder.checkpoints / step_name(folder.step or 0)).get("fingerprint")
    if then in (None, fingerprint):
        return check
    reason = f"the run was trained on other data: their fingerprint was {str(then)[:80]} and is {fingerprint}"
    return check.marked("warning", reason, "restore those before you continue this run")
