"""What the code that computes has to know of a device."""

from __future__ import annotations

import torch
from torch import Tensor


def widest_float(device: torch.device) -> torch.dtype:
    """The most exact floating-point type of a device: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy to CUDA is of page-locked memory, so that the host need not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
