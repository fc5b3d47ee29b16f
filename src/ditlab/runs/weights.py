"""What is in a checkpoint, brought back into a training or a network: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ditlab.config import Config
from ditlab.config.values import WIDTHS
from ditlab.core import disk
from ditlab.core.errors import InputError
from ditlab.data.dataset import Dataset
from ditlab.runs.build import most_numbers, network_shapes
from ditlab.runs.checkpoint import (
    damage,
    describe_part,
    files_of,
    place_of,
    read_facts,
    read_part,
)

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


def differences(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """In what tensors differ from those that are expected, but for their values."""
    missing = [f"missing {name}" for name in own.keys() - tensors.keys()]
    extra = [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    both = [(name, tensors[name], own[name]) for name in own.keys() & tensors.keys()]
    shapes = [f"{name} is {tuple(a.shape)}, not {tuple(b.shape)}" for name, a, b in both if a.shape != b.shape]
    kinds = [f"{name} is {a.dtype}, not {b.dtype}" for name, a, b in both if a.dtype != b.dtype]
    return sorted([*missing, *extra, *shapes, *kinds])


def tensor_name(width: float, parameter: str = "") -> str:
    """How the average of a parameter is called in a file; without a parameter, what all names of a width begin with."""
    return f"{width}/{parameter}"
