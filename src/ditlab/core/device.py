"""What the code that computes has to know of a device."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

from ditlab.core.errors import InputError


def widest_float(device: torch.device) -> torch.dtype:
    """The most exact floating-point type of a device: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy to CUDA is of page-locked memory, so that the host need not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


TENSOR_CORES = re.compile(r"\b(RTX|T4G?)\b")  # in the names of Turing's GPUs that have them


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
