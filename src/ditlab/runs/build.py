"""From a configuration to the things it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from ditlab.config import (
    CirclesData,
    Config,
    DigitsData,
    DiTConfig,
    ExternalData,
    ImagesData,
    LatentsData,
    MLPConfig,
    OwnConfig,
    OwnData,
    OwnProcess,
    PointsData,
    ScalarConfig,
    UNetConfig,
)
from ditlab.config.process import ProcessSection
from ditlab.core.errors import InputError
from ditlab.core.registry import DATASETS, LOSSES, NETWORKS, PROCESSES, Registry
from ditlab.core.rng import seed_from
from ditlab.data.circles import Circles
from ditlab.data.conditions import AnyCondition, Conditions, Scalar, Text, class_names, labelled, num_classes
from ditlab.data.dataset import Dataset, External
from ditlab.data.digits import Digits
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.data.points import Points
from ditlab.diffusion.auxiliary import Weighted, watched
from ditlab.diffusion.ddpm import DDPM
from ditlab.diffusion.flow_matching import FlowMatching
from ditlab.diffusion.meanflow import MeanFlow
from ditlab.diffusion.process import Process
from ditlab.networks.dit import DiT, build_dit
from ditlab.networks.mlp import MLPDenoiser
from ditlab.networks.unet import UNet


def build_dataset(config: Config) -> Dataset:
    """The data of a configuration."""
    match config.data:
        case CirclesData():
            return Circles()
        case PointsData(name=name):
            return Points(name)
        case DigitsData():
            return Digits()
        case ImagesData() as data:
            size = (data.image_size[0], data.image_size[-1])
            scalars = {name: Scalar("", *data.scalar_scales[name]) for name in data.scalars}
            read = (data.window, data.image_column, data.repeats, scalars)
            return Images(data.path, size, data.channels, data.classes, data.flip, data.bad_share, data.cache, *read)
        case LatentsData() as data:
            scale, shift = data.latent_scale, data.latent_shift
            return Latents(data.path, data.shape, data.classes, data.flip, scale, shift, data.vae, data.vae_digest)
        case ExternalData(shape=shape, num_classes=classes):
            return External(shape, labelled(classes))
        case OwnData() as data:
            return _own_dataset(data)


def _own_dataset(config: OwnData) -> Dataset:
    """A data set that was registered, or what is known of one that was given as an object."""
    if config.name:
        return made("data", config.name, DATASETS, config.settings)
    if config.shape is None:
        raise InputError("name the data set, under which it was registered, or give it to ditlab.fit as dataset=")
    conditions: dict[str, AnyCondition] = dict(labelled(config.classes))
    conditions |= {name: Scalar(**scalar.model_dump()) for name, scalar in config.scalars.items()}
    return External(config.shape, conditions | ({} if config.text_dim is None else {"text": Text(config.text_dim)}))


def own_data(dataset: Dataset, name: str = "", settings: Mapping[str, Any] | None = None) -> OwnData:
    """The section of a configuration that stands for a data set of one's own."""
    conditions = dataset.conditions
    text = conditions.get("text")
    return OwnData(
        name=name,
        settings=dict(settings or {}),
        shape=dataset.shape,
        classes=class_names(conditions),
        scalars={
            name: ScalarConfig(unit=kind.unit, mean=kind.mean, std=kind.std)
            for name, kind in conditions.items()
            if isinstance(kind, Scalar)
        },
        text_dim=text.dim if isinstance(text, Text) else None,
    )


def made(section: str, name: str, registry: Registry, settings: Mapping[str, Any], *given: Any, **named: Any) -> Any:
    """A part of one's own, by the name that it was registered under.

    Raises:
        InputError: it is not registered, or refuses its settings.
    """
    try:
        return registry[name](*given, **named, **settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"--{section} {name}: {error}") from None


GivenNetwork = nn.Module | Callable[[], nn.Module]
GivenProcess = Callable[[nn.Module], Process]


def as_given(
    config: Config,
    dataset: Dataset,
    whole: bool,
    network: GivenNetwork | None = None,
    process: GivenProcess | None = None,
) -> Config:
    """The configuration of a run whose parts were given as objects.

    Args:
        config: which says the rest.
        dataset: what the run is trained on.
        whole: whether that was given as an object, too; one that was registered is recorded by its name.
        network, process: what was given.

    Raises:
        InputError: a process in the place of a function that makes one.
    """
    if isinstance(process, Process):
        raise InputError("process= takes a function of the network, such as lambda net: ditlab.FlowMatching(net)")
    changes: dict[str, Any] = {}
    if whole:
        changes["data"] = own_data(dataset)
    elif isinstance(config.data, OwnData):
        changes["data"] = own_data(dataset, config.data.name, config.data.settings)
    if network is not None:
        changes["network"] = OwnConfig()
    if process is not None:
        changes["process"] = OwnProcess()
    return config.model_copy(update=changes)


def build_network(config: Config, dataset: Dataset, given: GivenNetwork | None = None) -> nn.Module:
    """The network of a configuration, for the shape and conditions of its data, with fresh weights.

    Args:
        config, dataset: which network, and for which data.
        given: a network, or a function that makes one, to use instead.

    Raises:
        InputError: the network does not go with the data.
    """
    if given is not None:
        return given if isinstance(given, nn.Module) else given()
    arguments: dict[str, Any] = config.network.model_dump(exclude={"kind"})
    shape, told = dataset.shape, network_conditions(dataset.conditions)
    if config.process.guided and told["num_classes"] is None:
        raise InputError("these data have no labels, so there is nothing to guide: drop --process.guidance")
    if config.process.takes_interval:
        if isinstance(config.network, UNetConfig | OwnConfig):
            needs = f"--process {config.process.kind} needs a network that takes an interval"
            raise InputError(f"{needs}: use --network dit or mlp")
        arguments["interval"] = True
    if isinstance(config.network, OwnConfig):
        return _own_network(config.network, shape, told)
    kind: type[nn.Module] = {DiTConfig: DiT, UNetConfig: UNet, MLPConfig: MLPDenoiser}[type(config.network)]
    taken = signature(kind).parameters
    if missing := [name for name, value in told.items() if value and name not in taken]:
        raise InputError(f"--network {config.network.kind} takes no {' and no '.join(missing)}: use --network dit")
    arguments |= {name: value for name, value in told.items() if name in taken}
    if kind is MLPDenoiser:
        arguments["shape"] = shape
    elif len(shape) != 3:
        raise InputError(f"--network {config.network.kind} needs images, and these data are points: use --network mlp")
    else:
        arguments |= {"image_size": shape[1:], "channels": shape[0]}
    try:
        return build_dit(**arguments) if kind is DiT else kind(**arguments)
    except ValueError as error:
        raise InputError(str(error)) from None


def network_conditions(conditions: Conditions) -> dict[str, Any]:
    """The conditions of data as networks are built for them: ``num_classes``, ``scalars`` and ``text_dim``."""
    text = conditions.get("text")
    scalars = tuple(name for name, kind in conditions.items() if isinstance(kind, Scalar))
    text_dim = text.dim if isinstance(text, Text) else None
    return {"num_classes": num_classes(conditions), "scalars": scalars, "text_dim": text_dim}


def _own_network(config: OwnConfig, shape: tuple[int, ...], told: dict[str, Any]) -> nn.Module:
    """A registered network, built for those of the conditions that its maker takes."""
    if not config.name:
        raise InputError(
            "name the network, under which it was registered: --network own --network.name NAME; one that was given to "
            "ditlab.fit as an object is given again, as network="
        )
    taken = {"num_classes": told["num_classes"]}
    if config.name in NETWORKS:
        known = signature(NETWORKS[config.name]).parameters
        taken |= {name: value for name, value in told.items() if name in known}
    network: nn.Module = made("network", config.name, NETWORKS, config.settings, shape=shape, **taken)
    return network


def initial_network(config: Config, dataset: Dataset, given: GivenNetwork | None = None) -> nn.Module:
    """The network as training begins with it: its fresh weights are a function of the seed, unless it was given.

    Raises:
        InputError: the network does not go with the data.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(config.seed, "weights"))
        return build_network(config, dataset, given)


def network_shapes(config: Config, dataset: Dataset) -> nn.Module | None:
    """The network of a configuration on the meta device: names and shapes, without memory or draws.

    None for a network of one's own, which may not go there.

    Raises:
        InputError: the network does not go with the data, or no computer has memory for it.
    """
    if isinstance(config.network, OwnConfig):
        return None
    try:
        with torch.device("meta"):
            return build_network(config, dataset)
    except RuntimeError:  # a size overflows
        raise InputError(f"--network {config.network.kind} of these sizes is too large for any computer") from None


def most_numbers(config: Config, dataset: Dataset) -> int:
    """No fewer numbers than the network of a configuration has, at once: the meta device takes a second to import."""
    size, classes = math.prod(dataset.shape), (num_classes(dataset.conditions) or 0) + 1
    told = network_conditions(dataset.conditions)
    scalars = len(told["scalars"])
    match config.network:
        case DiTConfig() as net:
            block = net.dim * (24 + 3 * math.ceil(net.mlp_ratio)) + net.time_features + classes + 64
            ends = size // net.patch_size**2 + 4 * net.patch_size**2 * dataset.shape[0] + classes + net.time_features
            ends += scalars * (net.dim + net.time_features + 4) + (told["text_dim"] or 0)
            return net.dim * ((net.depth + 1) * block + ends)
        case UNetConfig() as net:
            width = net.width * max(net.multipliers)
            return width * (
                200 * len(net.multipliers) * (width + 64)
                + 40 * dataset.shape[0]
                + 4 * (classes + scalars * (width + 64))
            )
        case MLPConfig() as net:
            wide = 4 * (net.depth - 1) * net.hidden + 256 * net.depth + 4 * size + classes + 64 * scalars
            return net.hidden * wide + 10_000 * scalars
        case OwnConfig():
            return 0


def build_process(config: Config, network: Any, given: GivenProcess | None = None) -> Process:
    """The process of a configuration around a network, or the one that a given function makes.

    Raises:
        InputError: its settings do not go together.
    """
    if given is not None:
        return given(network)
    process: ProcessSection = config.process
    if isinstance(process, OwnProcess):
        if not process.name:
            raise InputError(
                "name the process, under which it was registered: --process own --process.name NAME; one that was "
                "given to ditlab.fit as an object is given again, as process="
            )
        return _own_process(process, network)
    arguments = process.model_dump(exclude={"kind"})
    kinds: dict[str, type[Process]] = {"flow": FlowMatching, "ddpm": DDPM, "meanflow": MeanFlow}
    try:
        return kinds[process.kind](network, **arguments)
    except ValueError as error:
        raise InputError(str(error)) from None


def _own_process(config: OwnProcess, network: Any) -> Process:
    """A registered process; its maker is told which share of conditions to drop, if it takes that."""
    asked = signature(PROCESSES[config.name]).parameters if config.name in PROCESSES else {}
    given = {name: config.condition_dropout for name in ("condition_dropout",) if name in asked}
    process: Process = made("process", config.name, PROCESSES, config.settings, network, **given)
    return process


def auxiliary_losses(config: Config, network: nn.Module) -> Weighted:
    """The auxiliary losses of a configuration, which training alone needs, and their weights.

    Raises:
        InputError: one is not registered, or looks at a module that the network does not have.
    """
    losses = [(made("auxiliary", name, LOSSES, {}), weight) for name, weight in config.auxiliary.items()]
    try:
        with watched(network, losses):
            return losses
    except ValueError as error:
        raise InputError(str(error)) from None
