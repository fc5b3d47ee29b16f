"""A checkpoint brought back into a training: all of it, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.core.distributed import shared_like
from ditlab.core.errors import DamagedCheckpoint, InputError, first_line
from ditlab.runs import sharded as shards
from ditlab.runs.checkpoint import (
    damage,
    describe_part,
    files_of,
    place_of,
    read_facts,
    read_part,
    step_name,
    verified,
)
from ditlab.runs.weights import must_fit, other_network
from ditlab.training.loop import TrainState


def load_checkpoint(folder: Path, state: TrainState, step: int, *, checked: bool = False) -> None:
    """Bring ``state`` to where it was when that step was saved, in all or, if anything does not fit, in nothing.

    Args:
        folder: of the checkpoints.
        state: to bring there; all processes that share it call this.
        step: whose checkpoint.
        checked: that its files are what was saved has been looked at already.

    Raises:
        InputError: it does not fit the configuration or the data.
        DamagedCheckpoint: it is not what was saved.
    """
    checkpoint = folder / step_name(step) if checked else verified(folder, step)
    facts, seen = state.ranks.together(lambda: _fitting(checkpoint, state))
    parts = state.ranks.together(
        lambda: {name: _taken(checkpoint, name, tensors, state) for name, tensors in seen.items()}
    )
    state.ranks.together(lambda: _take_facts(checkpoint, facts, state))
    state.load_tensors(parts)


def _fitting(checkpoint: Path, state: TrainState) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What a checkpoint says of its training, and its tensors as ``_seen`` gives them, if they fit the state."""
    facts = read_facts(checkpoint)
    if absent := [name for name in state.tensors() if not files_of(checkpoint, name)]:
        raise InputError(f"{checkpoint} has no {absent[0]}, which config.json asks for: put back what it said before")
    told = other_network(facts, state.config)
    seen = {name: _seen(checkpoint, name, state) for name in state.tensors()}
    for name, problems in state.differences(seen).items():
        must_fit(place_of(checkpoint, name), (told if name == "model" else []) + problems)
    return facts, seen


def _take_facts(checkpoint: Path, facts: dict[str, Any], state: TrainState) -> None:
    try:
        state.take_facts(facts)
    except InputError:
        raise
    except Exception as error:
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} is damaged: {first_line(error, kind=True)}") from None


def _seen(checkpoint: Path, name: str, state: TrainState) -> dict[str, Tensor]:
    """The tensors of a part, or their shapes and types alone where shares of them are to be read."""
    if state.sharded and _in_shards(checkpoint, name):
        return {key: entry.like for key, entry in describe_part(checkpoint, name).items()}
    return read_part(checkpoint, name)


def _in_shards(checkpoint: Path, name: str) -> bool:
    return place_of(checkpoint, name) == checkpoint / name


def _taken(checkpoint: Path, name: str, seen: dict[str, Tensor], state: TrainState) -> dict[str, Tensor]:
    """The tensors of a part, or this process's share of them where the state is shared."""
    if not state.sharded:
        return seen
    likes = {key: state.like(name, key) for key in seen}
    if not _in_shards(checkpoint, name):
        return {key: shared_like(tensor, likes[key]) for key, tensor in seen.items()}
    targets = {
        key: torch.empty_like(tensor, device="cpu") if (like := likes[key]) is None else torch.empty_like(like)
        for key, tensor in seen.items()
    }
    with damage(checkpoint / name):
        shards.load(files_of(checkpoint, name), targets)
    return targets
