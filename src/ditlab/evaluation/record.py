"""What ``ditlab eval`` leaves in a run folder: every evaluation so far, a grid of samples, and possible copies."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ditlab.core.disk import read_json, remove, write_atomically
from ditlab.core.errors import InputError
from ditlab.core.locks import alone
from ditlab.evaluation.evaluator import Copy, Measured
from ditlab.runs.pictures import as_bytes, as_colors, contact_sheet, has_picture, save_picture

FILE, GRID, COPIES = "eval.json", "eval.png", "eval-nearest.png"

# All that decides figures, so that two evaluations of which these are the same are one.
SETTINGS = (
    *("run_step", "weights", "n", "seed", "labels", "solver", "steps", "grid", "shift"),
    *("guidance", "guidance_interval", "guidance_rescale", "guidance_channels", "guide", "guide_step"),
    *("features", "features_digest", "preprocessing", "reference", "vae", "vae_digest", "device", "ditlab", "torch"),
    *("nll_n", "nll_trace", "nll_rtol", "nll_atol"),  # none of them where no likelihood was asked for
)


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, the newest last.

    Raises:
        InputError: the file is damaged.
    """
    path = run / FILE
    if not os.path.lexists(path):
        return []
    found = read_json(path, run).get("evaluations")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{path} holds no list of evaluations: move it away, and measure again")
    return found


def must_be_recordable(run: Path) -> None:
    """Refuse a run's folder that figures could not be kept in: said before they are measured, which takes long.

    Raises:
        InputError: the file that is there is damaged, or nothing can be written beside it.
    """
    read_evaluations(run)
    if not os.access(run, os.W_OK):
        raise InputError(f"{run} cannot be written to, and {FILE} is kept there: make it writable, or measure a copy")


def record(run: Path, measured: Measured) -> list[Path]:
    """Add an evaluation to a run's file, in the place of one with the same settings, and write its pictures.

    Returns:
        The file, and the pictures.

    Raises:
        InputError: the file that is there is damaged.
    """
    settings = _settings(measured.figures)
    with alone(run / f".{FILE}.lock", f"{run / FILE} is being written"):
        others = [entry for entry in read_evaluations(run) if _settings(entry) != settings]
        text = json.dumps({"evaluations": [*others, measured.figures]}, indent=1, allow_nan=False) + "\n"
        write_atomically(run / FILE, lambda path: path.write_text(text))
        written = [run / FILE]
        shown, columns = measured.shown, measured.columns
        if has_picture(shown.shape[1:]):
            write_atomically(run / GRID, lambda path: save_picture(path, shown, columns))
            written.append(run / GRID)
        if not measured.copies:
            remove(run / COPIES)  # of another evaluation
        else:
            sheet = contact_sheet([_row(copy) for copy in measured.copies])
            write_atomically(run / COPIES, lambda path: sheet.save(path))
            written.append(run / COPIES)
    return written


def _settings(figures: dict[str, Any]) -> list[Any]:
    return [figures.get(name) for name in SETTINGS]


def _row(copy: Copy) -> tuple[str, Sequence[np.ndarray]]:
    """A sample and what is nearest to it, under a title."""
    title = f"sample {copy.number}, {copy.distances[0]:.3g} from {copy.names[0]}"
    return title, [_pixels(image) for image in (copy.sample, *copy.data)]


def _pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) in [−1, 1] → 8 bits, in colours."""
    pixels: np.ndarray = as_bytes(as_colors(image.detach().float().cpu()[None]))[0].numpy()
    return pixels.repeat(3, axis=0) if len(pixels) == 1 else pixels
