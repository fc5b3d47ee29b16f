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


def gate_recordings(folder: RunFolder) -> dict[str, Tensor]:
    """Gates, contributions and effective depth at each recorded step, and the loss. Damaged recordings are left out.

    Raises:
        InputError: there are none.
    """
    recordings = {step: tensors for step, file in numbered(folder.probes, "safetensors") if (tensors := _load(file))}
    if not recordings:
        raise InputError(f"{folder.path} recorded no gates")
    losses = [(line["step"], line["loss"]) for line in folder.read_metrics() if "loss" in line]
    arrays = {
        "step": torch.tensor(list(recordings)),
        "t": next(iter(recordings.values()))["t"],
        "loss_step": torch.tensor([step for step, _ in losses]),
        "loss": torch.tensor([loss for _, loss in losses]),
    }
    for name in ("gate", "contribution", "effective_depth"):
        arrays[name] = torch.stack([recording[name] for recording in recordings.values()])
    return arrays


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
