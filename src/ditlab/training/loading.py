"""What is in a checkpoint, brought back into a training or a network: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditlab import disk
from ditlab.build import most_numbers, network_shapes
from ditlab.choices import WIDTHS
from ditlab.config import Config
from ditlab.data.datasets import Dataset
from ditlab.errors import DamagedCheckpoint, InputError
from ditlab.training import shards
from ditlab.training.averages import tensor_name
from ditlab.training.checkpoint import (
    damage,
    describe_part,
    files_of,
    first_line,
    place_of,
    read_facts,
    read_part,
    step_name,
    verified,
)
from ditlab.training.loop import TrainState, differences
from ditlab.training.parallel import shared_like

SMALL = 2**24  # numbers of a network that is built whatever a checkpoint holds
LOOSELY = 4  # numbers a byte, of a network that may be what a checkpoint holds: 16 times as many as there are in fp32


def must_fit(file: Path, problems: list[str]) -> None:
    """Refuse a file that has problems.

    Raises:
        InputError: it has; the first five are given.
    """
    if problems:
        first = "; ".join(problem[:160] for problem in problems[:5])
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{file} does not fit the configuration: {first}{more}")


def network_facts(config: Config) -> dict[str, Any]:
    """What a checkpoint says about its network: some settings, such as heads, show in the shape of no tensor."""
    return {"network": config.network.model_dump(mode="json")}


def other_network(facts: Mapping[str, Any], config: Config) -> list[str]:
    """In what the network of a checkpoint, as far as it says, differs from the configuration's."""
    saved, own = facts.get("network"), network_facts(config)["network"]
    if not isinstance(saved, dict):
        return []
    if saved.get("kind") != own["kind"]:
        return [f"network is {str(saved.get('kind'))[:20]}, not {own['kind']}"]
    changed = [name for name in own if name in saved and saved[name] != own[name]]
    return [f"network.{name} is {str(saved[name])[:40]}, not {own[name]}" for name in changed]


def foresee(config: Config, dataset: Dataset, checkpoint: Path, name: str = "model") -> None:
    """Refuse a network that a checkpoint does not hold before memory is taken for it: by names, shapes and types.

    A network of about the size of what is stored is compared once it is built, by whoever loads it.

    Args:
        config: what the run's folder says it is.
        dataset: gives the network its shape and labels.
        checkpoint: a folder.
        name: "model" or "ema".

    Raises:
        InputError: they differ; the differences are listed.
        DamagedCheckpoint: the checkpoint cannot be read.
    """
    place = place_of(checkpoint, name)
    with damage(place):
        disk.must_stay(place, checkpoint.parents[1])
        stored = sum(file.stat().st_size for file in (place.iterdir() if place.is_dir() else [place]))
    if most_numbers(config, dataset) <= max(SMALL, LOOSELY * stored):
        return
    if (network := network_shapes(config, dataset)) is not None:
        seen = {key: entry.like for key, entry in describe_part(checkpoint, name).items()}
        told = other_network(read_facts(checkpoint), config)
        must_fit(place, told + differences(seen, network.state_dict()))


def load_weights(network: nn.Module, checkpoint: Path, name: str, config: Config) -> None:
    """Load a network's weights, all of them or none.

    Args:
        network: built from the configuration.
        checkpoint: a folder that was verified.
        name: "model" or "ema".
        config: what the run's folder says it is.

    Raises:
        InputError: the weights do not fit the network; the differences are listed.
        DamagedCheckpoint: they cannot be read.
    """
    told, tensors = other_network(read_facts(checkpoint), config), read_part(checkpoint, name)
    must_fit(place_of(checkpoint, name), told + differences(tensors, network.state_dict()))
    network.load_state_dict(tensors)


def load_average(network: nn.Module, checkpoint: Path, width: float, config: Config) -> None:
    """Load the power-function average of a relative width that was tracked, all of it or nothing.

    Raises:
        InputError: that width was not tracked, or the weights do not fit the network.
        DamagedCheckpoint: they cannot be read.
    """
    file, start = place_of(checkpoint, "averages"), tensor_name(width)
    stored = read_part(checkpoint, "averages") if files_of(checkpoint, "averages") else {}
    tensors = {name.removeprefix(start): tensor for name, tensor in stored.items() if name.startswith(start)}
    if not tensors:
        run, tracked = checkpoint.parent.parent, " and ".join(map(str, config.averages))
        if not tracked:
            raise InputError(f"no averages were tracked in {run}: choose 'ema' or 'raw'")
        near = min(max(width, WIDTHS[0]), WIDTHS[1])
        raise InputError(
            f"the averages tracked in {run} are {tracked}: ditlab ema {run} --sigma-rel {near} makes another, as a run"
        )
    must_fit(
        file, other_network(read_facts(checkpoint), config) + differences(tensors, dict(network.named_parameters()))
    )
    if buffers := network.state_dict().keys() - tensors.keys():  # which an average has not
        latest = read_part(checkpoint, "model")
        must_fit(place_of(checkpoint, "model"), differences(latest, network.state_dict()))
        tensors |= {name: latest[name] for name in buffers}
    network.load_state_dict(tensors)


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
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} is damaged: {first_line(error)}") from None


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
