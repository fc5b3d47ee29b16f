"""Averages of any length as runs of their own, made from the snapshots of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ditlab.config import Config
from ditlab.core.disk import made_whole, must_be_free
from ditlab.core.errors import InputError
from ditlab.runs.build import build_dataset, build_network, network_shapes
from ditlab.runs.checkpoint import saved_steps, step_name, verified, write_checkpoint
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import differences, foresee, load_weights, must_fit, network_facts
from ditlab.training.posthoc_ema import Combination, combine, combined

MOST_ERROR = 0.05  # an average whose expected relative error is larger is refused


class Made(NamedTuple):
    """A run that holds an average of another run's weights.

    Attributes:
        folder: the new run: ``ema`` is the average, ``model`` the last weights of that step or, without its
            checkpoint, the average too.
        sigma_rel: relative width.
        step: after which.
        snapshots: how many it was made from.
        expected_error: over the size of the weights; see ``Combination``.
        raw: whether the last weights were at hand.
    """

    folder: RunFolder
    sigma_rel: float
    step: int
    snapshots: int
    expected_error: float
    raw: bool


def make_averages(
    run: str | Path, sigma_rel: Sequence[float], step: int | None = None, out: str | Path | None = None
) -> list[Made]:
    """Make power-function averages of other lengths than were tracked, each as a run; whole, or not at all.

    Args:
        run: a run's folder, or its name in ``runs/``.
        sigma_rel: relative widths in [0.01, 0.28].
        step: after which step; None is the newest with a snapshot.
        out: folder of the new run, if it is one width; None is the run's with ``-ema-0.15`` behind its name, and the
            step if one was asked for.

    Raises:
        InputError: there are no snapshots, not of that step or not enough of them for that width; a snapshot is
            damaged; a folder is there already.
    """
    folder = RunFolder.find(run)
    config = folder.read_config()
    if not sigma_rel:
        raise InputError("--sigma-rel names no width: add one from 0.01 to 0.28, such as 0.15")
    steps, at = _steps(folder, config, step)
    if out is not None and len(sigma_rel) != 1:
        raise InputError(f"--out {out} is one folder, and {len(sigma_rel)} widths make as many: leave it out")
    suffix = "" if step is None else f"-{step_name(at)}"
    places = [Path(out) if out else folder.path.with_name(f"{folder.path.name}-ema-{w}{suffix}") for w in sigma_rel]
    for place in places:
        must_be_free(place)
    if len(set(places)) < len(places):
        raise InputError("--sigma-rel names a width twice")
    made_of = [_combination(folder, width, at, steps, config) for width in sigma_rel]
    averages = combined([folder.snapshot_file(s) for s in steps], made_of, config.averages)
    raw = _raw_weights(folder, config, at)
    made = []
    for width, place, combination, average in zip(sigma_rel, places, made_of, averages, strict=True):
        facts = {"run": str(folder.path), "sigma_rel": width, "expected_error": combination.expected_error}
        _write(place, config, at, average, raw, facts)
        error = combination.expected_error
        made.append(Made(RunFolder(place), width, at, len(steps), error, raw is not None))
    return made


def _steps(folder: RunFolder, config: Config, step: int | None) -> tuple[list[int], int]:
    """The steps of the snapshots to use, and the one whose average is made."""
    there = folder.snapshot_steps
    if not there or not config.averages:
        raise InputError(
            f"{folder.path} has no snapshots of averages to make others from: train a run that has --averages 0.05 0.1"
        )
    at = there[-1] if step is None else step
    if at not in there:
        near = ", ".join(map(str, sorted(sorted(there, key=lambda s: abs(s - at))[:3])))
        raise InputError(f"{folder.path} has no snapshot of step {at}; of those that it has {near} are nearest")
    return [s for s in there if s <= at], at


def _combination(folder: RunFolder, width: float, at: int, steps: list[int], config: Config) -> Combination:
    """How that width is made of the snapshots.

    Raises:
        InputError: it cannot be, to any use.
    """
    combination = combine(width, at, steps, config.averages)
    if combination.expected_error > MOST_ERROR:
        noun = "snapshot" if len(steps) == 1 else "snapshots"
        raise InputError(
            f"the {len(steps)} {noun} of {folder.path} up to step {at} do not make an average of {width} (expected "
            f"error {combination.expected_error:.2g}): ask for a width nearer to "
            f"{' or '.join(map(str, config.averages))}, or train with a smaller --average-every"
        )
    return combination


def _raw_weights(folder: RunFolder, config: Config, step: int) -> dict[str, Tensor] | None:
    """The last weights of that step, where its checkpoint is kept and whole."""
    if step not in saved_steps(folder.checkpoints):
        return None
    dataset = build_dataset(config)
    try:
        checkpoint = verified(folder.checkpoints, step)
        foresee(config, dataset, checkpoint)
        network = build_network(config, dataset)
        load_weights(network, checkpoint, "model", config)
    except InputError:
        return None
    return network.state_dict()


def _write(
    place: Path,
    config: Config,
    step: int,
    average: dict[str, Tensor],
    raw: dict[str, Tensor] | None,
    facts: dict[str, object],
) -> None:
    dataset = build_dataset(config)
    if (shapes := network_shapes(config, dataset)) is not None:
        must_fit(place, differences(average, dict(shapes.named_parameters())))
    network = build_network(config, dataset)
    must_fit(place, differences(average, dict(network.named_parameters())))
    buffers = network.state_dict().keys() - average.keys()  # which an average has not
    if buffers and raw is None:
        raise InputError(
            f"snapshots hold no buffers such as {min(buffers)}, and the checkpoint of step {step} is not there to give "
            "them: choose a --step whose checkpoint was kept"
        )
    network.load_state_dict(average | {name: raw[name] for name in buffers if raw is not None})
    weights = network.state_dict()
    with made_whole(place) as path:
        folder = RunFolder(path)
        folder.write_config(config.model_copy(update={"averages": ()}))
        parts = {"model": weights if raw is None else raw, "ema": weights, "optimizer": dict[str, torch.Tensor]()}
        write_checkpoint(folder.checkpoints, step, parts, network_facts(config) | facts)
