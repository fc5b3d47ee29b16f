"""What a run wrote down while it was trained: its gates, its loss and the steps of its pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditlab import disk
from ditlab.errors import InputError
from ditlab.run import RunFolder
from ditlab.training.checkpoint import step_name, step_of

MOST_PICTURE = 2**28  # bytes


def gate_recordings(folder: RunFolder, after: int = -1) -> dict[str, Tensor]:
    """Gates, contributions and effective depth at each recorded step beyond ``after``, and the loss of those steps.

    Damaged recordings are left out.

    Raises:
        InputError: there are none.
    """
    files = [(step, file) for step, file in numbered(folder, "probes") if step > after]
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
    return [step for step, _ in numbered(folder, "samples")]


def picture(folder: RunFolder, step: int) -> bytes:
    """The PNG file of that step's picture.

    Raises:
        InputError: it is no plain file of the run, or larger than any picture.
        OSError: it is not there.
    """
    return disk.read(folder.samples / f"{step_name(step)}.png", MOST_PICTURE, folder.path)


def recorded(folder: RunFolder) -> list[int]:
    """Steps at which the run recorded its gates."""
    return [step for step, _ in numbered(folder, "probes")]


def numbered(folder: RunFolder, kind: str) -> list[tuple[int, Path]]:
    """The files of a run in one of its folders that are named after steps, in their order."""
    return [(step_of(file), file) for file in folder.made(kind)]


def _load(file: Path) -> dict[str, Tensor] | None:
    """A recording, or None if it is damaged."""
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        return None
