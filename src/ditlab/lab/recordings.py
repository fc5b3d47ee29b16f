"""What a run wrote down while it was trained: its gates, its loss and the steps of its pictures."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditlab.errors import InputError
from ditlab.run import RunFolder


def gate_recordings(folder: RunFolder, after: int = -1) -> dict[str, Tensor]:
    """Gates, contributions and effective depth at each recorded step beyond ``after``, and the loss of those steps.

    Damaged recordings are left out.

    Raises:
        InputError: there are none.
    """
    files = [(step, file) for step, file in numbered(folder.probes, "safetensors") if step > after]
    recordings = {step: tensors for step, file in files if (tensors := _load(file))}
    if not recordings:
        beyond = "" if after < 0 else f" after step {after}"
        raise InputError(f"{folder.path} recorded no gates{beyond}")
    arrays = {
        "step": torch.tensor(list(recordings)),
        "t": next(iter(recordings.values()))["t"],
        **losses(folder, after),
    }
    for name in ("gate", "contribution", "effective_depth"):
        arrays[name] = torch.stack([recording[name] for recording in recordings.values()])
    return arrays


def losses(folder: RunFolder, after: int = -1) -> dict[str, Tensor]:
    """The loss at each step that was logged, beyond ``after``, and the seconds of training until then."""
    lines = [line for line in folder.read_metrics() if "loss" in line and line["step"] > after]
    names = {"loss_step": "step", "loss": "loss", "loss_seconds": "seconds"}
    return {name: torch.tensor([float(line[key]) for line in lines]) for name, key in names.items()}


def last_loss(folder: RunFolder) -> int | None:
    """The last step whose loss was logged; None without any, and where the metrics are damaged."""
    try:
        return max((line["step"] for line in folder.read_metrics() if "loss" in line), default=None)
    except (InputError, OSError):
        return None


def previews(folder: RunFolder) -> list[int]:
    """Steps at which the run left a picture drawn from the same noise."""
    return [step for step, _ in numbered(folder.samples, "png")]


def recorded(folder: RunFolder) -> list[int]:
    """Steps at which the run recorded its gates."""
    return [step for step, _ in numbered(folder.probes, "safetensors")]


def numbered(folder: Path, ending: str) -> list[tuple[int, Path]]:
    """The files of a run that are named after steps, in their order."""
    named = ((re.fullmatch(rf"step-(\d{{8}})\.{ending}", file.name), file) for file in sorted(folder.glob("step-*")))
    return [(int(match[1]), file) for match, file in named if match]


def _load(file: Path) -> dict[str, Tensor] | None:
    """A recording, or None if it is damaged."""
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        return None
