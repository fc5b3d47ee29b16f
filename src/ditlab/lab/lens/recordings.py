"""What a run wrote down while it was trained: its gates, its loss and the steps of its pictures."""

from __future__ import annotations

import threading
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditlab.core import disk
from ditlab.core.errors import InputError
from ditlab.runs import metrics
from ditlab.runs.checkpoint import step_name, step_of
from ditlab.runs.folder import RunFolder

BINS = 1500  # of a curve: no fewer than it has pixels
RECORDED = ("t", "gate", "contribution", "effective_depth")
MOST_PICTURE = 2**28  # bytes


def outline(values: array[float] | np.ndarray) -> list[int]:
    """Which values a line is drawn by: of each of ``BINS`` bins its ends, its least and its greatest.

    Where no bin is wider than a pixel the line looks as it would through all of them: M4, Jugel et al., VLDB 2014.
    A curve of no more than ``4 * BINS`` values is drawn by all of them.
    """
    if len(values) <= 4 * BINS:
        return list(range(len(values)))
    edges = np.linspace(0, len(values), BINS + 1).astype(int).tolist()
    bins = [(a, b, np.asarray(values[a:b])) for a, b in pairwise(edges)]
    return sorted({i for a, b, some in bins for i in (a, b - 1, a + int(some.argmin()), a + int(some.argmax()))})


class Losses:
    """The losses of a run's metrics; whoever asks again has only those read that were added. For any thread."""

    def __init__(self, folder: RunFolder) -> None:
        self._metrics = metrics.Growing(folder.metrics_file)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._metrics.forget()
        self._columns = {"step": array("d"), "loss": array("d"), "seconds": array("d")}

    def after(self, step: int = -1) -> dict[str, Tensor]:
        """The loss at each step that was logged, beyond ``step``, and the seconds of training until then.

        What a line is drawn by is left of many of them, see ``outline``. Damaged lines are left out.

        Raises:
            InputError: the metrics are no file.
        """
        with self._lock:
            self._read()
            columns = {name: np.array(column) for name, column in self._columns.items()}
        later = columns["step"] > step
        columns = {name: column[later] for name, column in columns.items()}
        kept = outline(columns["loss"])
        names = {"loss_step": "step", "loss": "loss", "loss_seconds": "seconds"}
        return {name: torch.from_numpy(columns[key][kept].astype(np.float32)) for name, key in names.items()}

    def _read(self) -> None:
        try:
            lines = self._metrics.added()
            if lines is None:
                self._forget()
                lines = self._metrics.added() or iter(())
        except FileNotFoundError:
            return self._forget()
        for line in lines:
            if "loss" in line:
                for name, column in self._columns.items():
                    column.append(line[name])
        return None


def losses(folder: RunFolder, after: int = -1) -> dict[str, Tensor]:
    """The loss of a run beyond the step ``after``, see ``Losses.after``."""
    return Losses(folder).after(after)


def gate_recordings(folder: RunFolder, after: int = -1, course: Losses | None = None) -> dict[str, Tensor]:
    """Gates, contributions and effective depth at each recorded step beyond ``after``, and the losses after that step.

    Damaged recordings are left out. ``course`` holds the run's losses, as far as they were read before.

    Raises:
        InputError: there are none.
    """
    files = [(step, file) for step, file in numbered(folder, "probes") if step > after]
    recordings = {step: tensors for step, file in files if (tensors := _load(file))}
    if not recordings:
        beyond = "" if after < 0 else f" after step {after}"
        raise InputError(f"{folder.path} recorded no gates{beyond}")
    first = next(iter(recordings.values()))
    shapes = {name: tensor.shape for name, tensor in first.items()}
    recordings = {step: some for step, some in recordings.items() if {n: x.shape for n, x in some.items()} == shapes}
    stacked = {name: torch.stack([some[name] for some in recordings.values()]) for name in RECORDED[1:]}
    steps = torch.tensor(list(recordings))
    return {"step": steps, "t": first["t"], **(course or Losses(folder)).after(after), **stacked}


def last_loss(folder: RunFolder) -> int | None:
    """The last step whose loss was logged; None without any."""
    try:
        return next((line["step"] for line in metrics.newest(folder.metrics_file) if "loss" in line), None)
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
        tensors = load_file(file)
        return {name: tensors[name] for name in RECORDED}
    except (SafetensorError, OSError, KeyError):
        return None
