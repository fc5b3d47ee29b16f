"""The sizes of networks and batches to measure. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ditlab.core.errors import InputError
from ditlab.networks.presets import PRESETS, preset

Task = Literal["train", "sample"]


@dataclass(frozen=True)
class Size:
    """A DiT with MLP ratio 4, the only one that diffusers supports, and its batches."""

    name: str  # on the command line
    image_size: int
    patch_size: int
    channels: int
    dim: int
    depth: int
    heads: int
    num_classes: int
    batch: int  # samples of a training step, and of a sampling
    part: int  # samples processed at a time in a step; divides the batch
    steps: int  # of Heun's method in a sampling
    published: str | None = None  # name of the published network

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        return self.channels, self.image_size, self.image_size

    @property
    def dtypes(self) -> list[str]:
        """Precisions to measure; nobody runs the largest networks in fp32."""
        return ["bf16"] if self.name.startswith("XL") else ["fp32", "bf16"]

    @property
    def tokens(self) -> int:
        """Number of patches of one sample, N."""
        return (self.image_size // self.patch_size) ** 2


LESSON, TINY = "lesson", "tiny"
ON_CPU = (LESSON, "S/4")
ON_CUDA = (*ON_CPU, "B/4", "XL/2")
KNOWN = (TINY, LESSON, *(name.removeprefix("DiT-") for name in PRESETS))
CPU_BATCHES = {"S": 32, "B": 8, "L": 2}  # large enough for products to dominate, at seconds a step
CUDA_BATCH, CUDA_PART = 256, 32
STEPS, FEW_STEPS = 25, 4  # of a sampling; few for published sizes, which are slow on a CPU


def size_of(name: str, device: str) -> Size:
    """The size of a name, with batches for a type of device.

    Raises:
        InputError: unknown name, or too large for the device.
    """
    own = {
        TINY: Size(TINY, 8, 4, 1, 16, 1, 2, 10, 4, 4, STEPS),
        LESSON: Size(LESSON, 16, 4, 1, 64, 4, 4, 10, 128, 128, STEPS),
    }
    if name in own:
        return own[name]
    if name not in KNOWN:
        raise InputError(f"--sizes {name!r} is not known; choose from {', '.join(KNOWN)}, separated by commas")
    if name.startswith("XL") and device != "cuda":
        raise InputError(f"--sizes {name} needs a CUDA GPU: leave it out, or choose from {', '.join(ON_CPU)}")
    sizes: dict[str, Any] = preset(f"DiT-{name}")
    chosen = {field: sizes[field] for field in ("image_size", "patch_size", "channels", "dim", "depth", "heads")}
    batch = CUDA_BATCH if device == "cuda" else CPU_BATCHES[name.partition("/")[0]]
    part = min(batch, CUDA_PART)
    return Size(name, **chosen, num_classes=1000, batch=batch, part=part, steps=FEW_STEPS, published=f"DiT-{name}")


def sizes_of(names: str | None, device: str) -> list[Size]:
    """The sizes of comma-separated names; None for the device's default sizes.

    Raises:
        InputError: as ``size_of``.
    """
    if names is None:
        return [size_of(name, device) for name in (ON_CUDA if device == "cuda" else ON_CPU)]
    return [size_of(name.strip(), device) for name in dict.fromkeys(names.split(","))]
