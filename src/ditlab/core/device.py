"""What computing code needs to know about devices and precisions."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

from ditlab.core.errors import InputError


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. Copies to CUDA go through page-locked memory, so that the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TENSOR_CORES = re.compile(r"\b(RTX|T4G?)\b")  # in the names of the Turing GPUs that have them


def resolve_device(device: str) -> torch.device:
    """Choose a device; ``"auto"`` is CUDA if available, else Apple's GPU, else the CPU.

    Raises:
        InputError: this machine does not have the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    if not available.get(device, False):
        raise InputError(f"device {device!r} is not available here; use --device auto")
    return torch.device(device)


def accelerator_precision(device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    """The precision of ``"auto"`` on a GPU: bf16 if the hardware has it, fp16 on Volta and Turing, else fp32.

    Pascal and Turing's smaller chips (GTX 16, MX, T400 to T1200, which report Turing's compute capability) have no
    tensor cores and get fp32. See docs/decisions/0018.
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
    """Whether a GPU multiplies bf16 in hardware (compute capability 8.0 and later). CPUs are measured instead."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context that multiplies matrices in bf16 or fp16; with "fp32" it changes nothing."""
    return torch.autocast(device.type, HALVES.get(precision, torch.bfloat16), enabled=precision in HALVES)
