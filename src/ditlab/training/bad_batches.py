"""What a step that could not be learned from was made of, kept for a look."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.core.device import autocast
from ditlab.core.disk import write_atomically
from ditlab.data.dataset import Dataset, Listed, share_of_batch
from ditlab.runs.checkpoint import save_tensors, step_name
from ditlab.training.compilation import uncompiled
from ditlab.training.loop import Step, TrainState, draws, parts

SMALL = 2**24  # bytes of x0 that are kept


def save_failure(folder: Path, state: TrainState, dataset: Dataset, step: Step) -> Path:
    """Write ``folder/step-00002000.json`` and ``.safetensors`` about a step that was skipped; return the first.

    Both hold, for each sample, its position in the order of the data, its time t and its loss (and the "error" before
    this was weighted, if it was), drawn and computed as in the step, and its label, number and name where the data have
    such; the second also x0, where it is small.
    """
    config, done = state.config, step.step - 1
    position, size = done * config.batch_size, config.batch_size
    batch = dataset.batch(config.seed, position, size)
    tensors = {"position": torch.arange(position, position + size)}
    tensors |= {name: state.ranks.gather(value) for name, value in _recomputed(state, dataset, done).items()}
    tensors |= {name: value for name, value in batch.cond.items() if value.dim() == 1}
    if isinstance(dataset, Listed):
        tensors["index"] = dataset.indices(config.seed, position, size)
    columns: dict[str, list[Any]] = {name: _plain(value.tolist()) for name, value in tensors.items()}
    if isinstance(dataset, Listed):
        columns["name"] = [dataset.name(index) for index in columns["index"]]
    if batch.x0.numel() * batch.x0.element_size() <= SMALL:
        tensors["x0"] = batch.x0
    about = {
        "step": step.step,
        "skipped": step.skipped,
        "loss": _plain(float(step.loss)),
        "grad_norm": _plain(float(step.grad_norm)),
        "running_mean": state.guard.mean,
        "samples": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
    path = folder / f"{step_name(step.step)}.json"
    if state.ranks.first:
        write_atomically(path.with_suffix(".safetensors"), lambda file: save_tensors(file, tensors))
        write_atomically(path, lambda file: file.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n"))
    return path


@torch.no_grad()
def _recomputed(state: TrainState, dataset: Dataset, done: int) -> dict[str, Tensor]:
    """The times and the losses of this process's samples, as the step after ``done`` draws them; errors if weighted."""
    config, ranks = state.config, state.ranks
    batch = share_of_batch(dataset, config.seed, done * config.batch_size, config.batch_size, ranks.rank, ranks.world)
    generator, found = draws(state, done), defaultdict[str, list[Tensor]](list)
    for x0, cond in parts(state, batch):
        t = state.process.draw_times(len(x0), generator, x0.device)
        with autocast(config.precision, x0.device), uncompiled(state.network):
            losses = state.process.losses(x0, cond, generator=generator, t=t)
        errors = state.process.unweighted
        figures = {"t": t, "loss": losses.float()} | ({} if errors is None else {"error": errors.float()})
        for name, value in figures.items():
            found[name].append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def _plain(value: Any) -> Any:
    """Numbers that JSON has, and words for those that it has not."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
