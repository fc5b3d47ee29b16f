"""Read all that is examined of a run, without writing to it or locking it: it may be training."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ditlab.config import Config, ExternalData
from ditlab.core.device import resolve_device
from ditlab.core.errors import CheckpointWarning, InputError
from ditlab.data.dataset import Dataset
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.diffusion.process import Process
from ditlab.doctor.metrics import Course
from ditlab.runs import metrics
from ditlab.runs.build import build_dataset, build_process, initial_network
from ditlab.runs.checkpoint import newest_whole, read_facts, read_part, saved_steps, step_name, verified
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import foresee, load_weights


@dataclass(frozen=True)
class Weights:
    """The networks of a checkpoint, in evaluation mode, without gradients, on the device.

    ``earlier`` are step, averaged and raw weights of the checkpoint before, if there is one; ``sigma_rel`` is the
    relative width of an average made by ``ditlab ema``.
    """

    step: int
    averaged: Process
    raw: Process
    initial: nn.Module  # at the start of training
    earlier: tuple[int, dict[str, Tensor], dict[str, Tensor]] | None
    sigma_rel: float | None = None


@dataclass(frozen=True)
class Subject:
    """A run; ``weights`` and ``dataset`` are None if they cannot be read, and ``problems`` says why."""

    folder: RunFolder
    config: Config
    course: Course  # summary of the metrics
    dataset: Dataset | None
    weights: Weights | None
    problems: dict[str, str]  # by "metrics", "data" or "checkpoint"
    passed_over: list[str]  # warnings of damaged checkpoints

    @property
    def step(self) -> int:
        """The latest known step."""
        return max(self.course.step, self.weights.step if self.weights else 0)


def read_subject(name: str | Path, device: str) -> Subject:
    """Read a run.

    Raises:
        InputError: there is no such run, its configuration is damaged, or the device does not exist.
    """
    folder = RunFolder.find(name)
    config, problems, course = folder.read_config(), dict[str, str](), Course()
    resolve_device(device)
    try:
        course = Course.of(metrics.read(folder.metrics_file))
    except InputError as error:
        problems["metrics"] = str(error)
    dataset = _prepared(config, problems)
    weights = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CheckpointWarning)
        try:
            weights = _read_weights(folder, config, device)
        except InputError as error:
            problems["checkpoint"] = str(error)
    passed_over = [str(warning.message) for warning in said if issubclass(warning.category, CheckpointWarning)]
    if weights is None:
        problems.setdefault("checkpoint", "no checkpoint yet")
    return Subject(folder, config, course, dataset, weights, problems, passed_over)


def _prepared(config: Config, problems: dict[str, str]) -> Dataset | None:
    """The data of the run, ready to be read; None, with an entry in ``problems``, if that fails."""
    if isinstance(config.data, ExternalData):
        problems["data"] = "it was trained elsewhere: its data are not here"
        return None
    dataset = build_dataset(config)
    try:
        if isinstance(dataset, Images | Latents):
            dataset.prepare()
    except (InputError, OSError) as error:
        problems["data"] = str(error)
        return None
    return dataset


def _read_weights(folder: RunFolder, config: Config, device: str) -> Weights | None:
    """The networks of the newest whole checkpoint, or None."""
    dataset = build_dataset(config)

    def take(step: int) -> tuple[int, nn.Module, list[nn.Module]]:
        checkpoint = verified(folder.checkpoints, step)
        foresee(config, dataset, checkpoint)
        initial = initial_network(config, dataset).eval().requires_grad_(False)
        loaded = [copy.deepcopy(initial), copy.deepcopy(initial)]
        for network, name in zip(loaded, ("ema", "model"), strict=True):
            load_weights(network, checkpoint, name, config)
        return step, initial, loaded

    taken = newest_whole(folder.checkpoints, take)
    if taken is None:
        return None
    step, initial, loaded = taken
    where = resolve_device(device)
    processes = [build_process(config, network.to(where)).eval().requires_grad_(False) for network in loaded]
    width = read_facts(folder.checkpoints / step_name(step)).get("sigma_rel")
    return Weights(
        step,
        averaged=processes[0],
        raw=processes[1],
        initial=initial.to(where),
        earlier=_earlier(folder, step),
        sigma_rel=width if isinstance(width, float) else None,
    )


def _earlier(folder: RunFolder, step: int) -> tuple[int, dict[str, Tensor], dict[str, Tensor]] | None:
    """The newest whole checkpoint before a step, if any; a training process may delete it meanwhile."""
    for before in reversed([s for s in saved_steps(folder.checkpoints) if s < step]):
        with contextlib.suppress(InputError):
            checkpoint = verified(folder.checkpoints, before)
            tensors = [read_part(checkpoint, name) for name in ("ema", "model")]
            return before, tensors[0], tensors[1]
    return None
