"""Which of our networks others can represent, and the exact conversion of weights to their conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditlab.config import DiTConfig
from ditlab.core.errors import InputError
from ditlab.runs.run import Run


@dataclass(frozen=True)
class Convention:
    """The inputs and outputs of another project's network, whose sinusoid sees scale · t + offset, with our t."""

    name: str  # of the project
    process: Mapping[str, tuple[Any, ...]]  # possible values of our process settings
    network: Mapping[str, tuple[Any, ...]]  # the same for our DiT; all not here or in CARRIED must have their defaults
    scale: float | None  # None is the number of DDPM steps
    offset: float
    sign: int = 1  # −1 if its prediction has the opposite sign


CARRIED = {"kind", "patch_size", "dim", "depth", "heads", "time_scale", "time_offset"}
_STATE_DICT = {
    "gelu": ("tanh",),
    "time_features": (256,),
    "positions": ("sincos", "learned"),
    "null_label": (True, False),
}
FACEBOOK = Convention(
    name="facebookresearch/DiT",
    process={"kind": ("ddpm",), "steps": (1000,), "schedule": ("linear",), "target": ("eps",)},
    network={**_STATE_DICT, "learned_variance": (True, False)},
    scale=1000.0,
    offset=-1.0,
)
SIT = Convention(
    name="SiT",
    process={"kind": ("flow",), "path": ("linear",)},
    network=_STATE_DICT,
    scale=-1.0,
    offset=1.0,
    sign=-1,
)
DIFFUSERS = Convention(
    name="diffusers' DiTTransformer2DModel",
    process={"kind": ("ddpm",)},
    network={
        "gelu": ("tanh", "exact"),
        "time_features": (256,),
        "positions": ("sincos",),
        "mlp_ratio": (4.0,),
        "learned_variance": (True, False),
        "embedders": ("shared", "per-block"),
        "time_frequency_shift": (0, 1),
    },
    scale=None,
    offset=-1.0,
)
_ANY_RATIO = (FACEBOOK, SIT)  # their MLP ratio is an argument


def expressed(run: Run, convention: Convention) -> dict[str, Tensor]:
    """The weights of a run's DiT, converted so that the other project's code computes the same function.

    Raises:
        InputError: it cannot; the settings are named.
    """
    if problems := _obstacles(run, convention):
        raise InputError(f"{convention.name} cannot represent {run.folder.path}: {'; '.join(problems)}")
    network = run.config.network
    assert isinstance(network, DiTConfig)
    tensors = {name: tensor.detach().cpu() for name, tensor in run.process.network.state_dict().items()}
    direction = 1 if network.time_scale * _scale(run, convention) > 0 else -1
    delta = network.time_offset - direction * convention.offset
    if (direction, delta) != (1, 0.0):
        rates = _rates(network)
        for name in [name for name in tensors if name.endswith("time.mlp.0.weight")]:
            tensors[name] = rotated(tensors[name], rates, direction, delta)
    if convention.sign < 0:
        tensors |= {name: -tensors[name] for name in ("final.linear.weight", "final.linear.bias")}
    return tensors


def rotated(weight: Tensor, rates: Tensor, direction: int, delta: float) -> Tensor:
    """Convert a linear layer on [cos α, sin α], α = direction·β + delta·rate, to one on [cos β, sin β].

    cos α and sin α are a rotation of cos β and ± sin β by delta · rate, which the layer absorbs exactly (in float64).

    Args:
        weight: (D, 2·half), on [cos α, sin α].
        rates: (half,), the frequencies.
        direction: 1 or −1.
        delta: offset of α from β, in units of the sinusoid's time.
    """
    cosines, sines = weight.double().chunk(2, dim=1)
    c, s = torch.cos(delta * rates), torch.sin(delta * rates)
    turned = torch.cat([cosines * c + sines * s, direction * (sines * c - cosines * s)], dim=1)
    return turned.to(weight.dtype)


def _rates(network: DiTConfig) -> Tensor:
    half = network.time_features // 2
    exponents = torch.arange(half, dtype=torch.float64) / (half - network.time_frequency_shift)
    return torch.exp(-math.log(10000.0) * exponents)


def _scale(run: Run, convention: Convention) -> float:
    return float(getattr(run.config.process, "steps", 0)) if convention.scale is None else convention.scale


def _obstacles(run: Run, convention: Convention) -> list[str]:
    """The settings of a run that the other project does not support."""
    network, process = run.config.network, run.config.process
    if not isinstance(network, DiTConfig):
        return [f"network={network.kind}, not dit"]
    problems = [
        _said("process", name, getattr(process, name, None), possible)
        for name, possible in convention.process.items()
        if getattr(process, name, None) not in possible
    ]
    for name, field in DiTConfig.model_fields.items():
        if name in CARRIED or (name == "mlp_ratio" and convention in _ANY_RATIO):
            continue
        possible = convention.network.get(name, (field.default,))
        if getattr(network, name) not in possible:
            problems.append(_said("network", name, getattr(network, name), possible))
    scale = _scale(run, convention)
    if abs(network.time_scale) != abs(scale) and process.kind in convention.process["kind"]:
        problems.append(f"network.time_scale={network.time_scale:g}, not ±{abs(scale):g}")
    if len(run.shape) == 3 and run.shape[1] != run.shape[2]:
        problems.append(f"images of {run.shape[1]}×{run.shape[2]}, not square")
    if run.num_classes is None:
        problems.append("no labels")
    return problems


def _said(section: str, name: str, value: object, possible: tuple[Any, ...]) -> str:
    return f"{section}.{name}={value}, not {' or '.join(map(str, possible))}"
