"""From a configuration to the things it describes."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from torch import nn

from ditlab.chance import seed_from
from ditlab.config import (
    CirclesData,
    Config,
    DigitsData,
    DiTConfig,
    ExternalData,
    ImagesData,
    LatentsData,
    MeanFlowConfig,
    MLPConfig,
    OwnConfig,
    PointsData,
    SamplingConfig,
    UNetConfig,
)
from ditlab.data.datasets import Circles, Dataset, Digits, External, Points
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.diffusion.guidance import ClassifierFree, Guidance, Interval, Rescaled
from ditlab.diffusion.meanflow import MeanFlow
from ditlab.diffusion.process import DDPM, FlowMatching, Process
from ditlab.errors import InputError
from ditlab.networks.dit import DiT
from ditlab.networks.mlp import MLPDenoiser
from ditlab.networks.registered import make_network
from ditlab.networks.unet import UNet

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TENSOR_CORES = re.compile(r"\b(RTX|T4G?)\b")  # in the names of Turing's GPUs that have them


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
            read = (data.window, data.image_column, data.repeats)
            return Images(data.path, size, data.channels, data.classes, data.flip, data.bad_share, data.cache, *read)
        case LatentsData() as data:
            scale, shift = data.latent_scale, data.latent_shift
            return Latents(data.path, data.shape, data.classes, data.flip, scale, shift, data.vae, data.vae_digest)
        case ExternalData(shape=shape, num_classes=num_classes):
            return External(shape, num_classes)


def build_network(config: Config, dataset: Dataset) -> nn.Module:
    """The network of a configuration, for the shape and labels of its data, with fresh weights.

    Raises:
        InputError: the network does not go with the data.
    """
    arguments: dict[str, Any] = config.network.model_dump(exclude={"kind"})
    shape, num_classes = dataset.shape, dataset.num_classes
    if isinstance(config.process, MeanFlowConfig):
        if isinstance(config.network, UNetConfig | OwnConfig):
            raise InputError("--process meanflow needs a network that takes an interval: use --network dit or mlp")
        if config.process.guidance != 1 and num_classes is None:
            raise InputError("these data have no labels, so there is nothing to guide: drop --process.guidance")
        arguments["interval"] = True
    if isinstance(config.network, OwnConfig):
        return _own_network(config.network, shape, num_classes)
    if isinstance(config.network, MLPConfig):
        return MLPDenoiser(shape, num_classes=num_classes, **arguments)
    if len(shape) != 3:
        raise InputError(f"--network {config.network.kind} needs images, and these data are points: use --network mlp")
    arguments |= {"image_size": shape[1:], "channels": shape[0], "num_classes": num_classes}
    kinds: dict[type, type[nn.Module]] = {DiTConfig: DiT, UNetConfig: UNet}
    try:
        return kinds[type(config.network)](**arguments)
    except ValueError as error:
        raise InputError(str(error)) from None


def _own_network(config: OwnConfig, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    if not config.name:
        raise InputError("name the network, under which it was registered: --network own --network.name NAME")
    try:
        return make_network(config.name, shape=shape, num_classes=num_classes, **config.settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"--network.name {config.name}: {error}") from None


def initial_network(config: Config, dataset: Dataset) -> nn.Module:
    """The network as training begins with it: its fresh weights are a function of the seed.

    Raises:
        InputError: the network does not go with the data.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(config.seed, "weights"))
        return build_network(config, dataset)


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
    size, classes = math.prod(dataset.shape), (dataset.num_classes or 0) + 1
    match config.network:
        case DiTConfig() as net:
            block = net.dim * (24 + 3 * math.ceil(net.mlp_ratio)) + net.time_features + classes + 64
            ends = size // net.patch_size**2 + 4 * net.patch_size**2 * dataset.shape[0] + classes + net.time_features
            return net.dim * ((net.depth + 1) * block + ends)
        case UNetConfig() as net:
            width = net.width * max(net.multipliers)
            return width * (200 * len(net.multipliers) * (width + 64) + 40 * dataset.shape[0] + 4 * classes)
        case MLPConfig() as net:
            return net.hidden * (4 * (net.depth - 1) * net.hidden + 256 * net.depth + 4 * size + classes)
        case OwnConfig():
            return 0


def build_process(config: Config, network: Any) -> Process:
    """The process of a configuration around a network.

    Raises:
        InputError: its settings do not go together.
    """
    arguments: dict[str, Any] = config.process.model_dump(exclude={"kind"})
    kinds: dict[str, type[FlowMatching | DDPM | MeanFlow]] = {
        "flow": FlowMatching,
        "ddpm": DDPM,
        "meanflow": MeanFlow,
    }
    try:
        return kinds[config.process.kind](network, **arguments)
    except ValueError as error:
        raise InputError(str(error)) from None


def build_drawing(sampling: SamplingConfig, process: Process, guided: bool) -> dict[str, Any]:
    """The arguments of ``Process.sample`` that a configuration's sampling stands for; no guidance if not ``guided``.

    Raises:
        InputError: its settings do not go together, or not with the process.
    """
    grid = None if sampling.grid == "auto" else sampling.grid
    try:
        solver = process.stepper(sampling.solver)
        process.sampling_times(sampling.steps, grid, sampling.shift)
        guidance = _guidance(sampling) if guided and sampling.guidance != 1 else None
    except ValueError as error:
        raise InputError(str(error)) from None
    return {"steps": sampling.steps, "solver": solver, "guidance": guidance, "grid": grid, "shift": sampling.shift}


def _guidance(sampling: SamplingConfig) -> Guidance:
    guidance: Guidance = ClassifierFree(sampling.guidance, sampling.guidance_channels)
    if sampling.guidance_rescale:
        guidance = Rescaled(guidance, sampling.guidance_rescale)
    return guidance if sampling.guidance_interval is None else Interval(guidance, *sampling.guidance_interval)


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        InputError: a device this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    if not available.get(device, False):
        raise InputError(f"device {device!r} is not available here; use --device auto")
    return torch.device(device)


def accelerator_precision(device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    """What ``"auto"`` is on a GPU: bf16, or fp16 where tensor cores multiply that alone (Volta, Turing), or fp32.

    Turing's smaller chips (GTX 16, MX, T400 to T1200) report the same compute capability and have no tensor cores;
    Pascal and older have none. See docs/decisions/0018.
    """
    if device.type != "cuda":
        return "fp32"
    if multiplies_bf16(device):
        return "bf16"
    capability = torch.cuda.get_device_capability(device)
    volta = (7, 0) <= capability < (7, 5)
    turing = capability == (7, 5) and TENSOR_CORES.search(torch.cuda.get_device_name(device))
    return "fp16" if volta or turing else "fp32"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a GPU's hardware does, from compute capability 8.0 on; what a CPU does is measured (``machine``)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Around what is computed in a precision that is resolved: matrix products in bf16 or fp16, or all in fp32."""
    return torch.autocast(device.type, HALVES.get(precision, torch.bfloat16), enabled=precision in HALVES)
