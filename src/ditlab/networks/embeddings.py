"""What numbers become before a network computes with them: patches, positions and sinusoidal features of a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.networks.kernels import full_precision, product
from ditlab.networks.layers import Linear, xavier_initialised


def check_sizes(**sizes: float) -> None:
    """Refuse sizes that are not above zero, by name.

    Raises:
        ValueError: one is not.
    """
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"{name}={size} must be above 0")


def check_times(x: Tensor, t: Tensor) -> None:
    """Refuse anything but one float time for each sample.

    Raises:
        ValueError: another shape or type.
    """
    if t.shape != x.shape[:1] or not t.is_floating_point():
        raise ValueError(
            f"t must hold one float time for each of the {len(x)} samples, not {t.dtype} of {tuple(t.shape)}"
        )


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """An image or grid size as (height, width); a single number means a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


class PatchEmbed(nn.Module):
    """Cut an image into p × p patches and map each to a token: (B, C, H, W) → (B, N, D), N = (H/p)·(W/p).

    One Conv2d whose kernel equals its stride is reshape + flatten + Linear (Dosovitskiy et al. 2021, section 3.1), and
    on a CPU it is computed as these, which is quicker there (docs/lesson.md). Tokens run row by row.

    Args:
        image_size: H = W, or (H, W), in pixels.
        patch_size: p in pixels; must divide H and W.
        channels: C.
        dim: D.
    """

    def __init__(self, image_size: int | tuple[int, int], patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        height, width = as_pair(image_size)
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"image size {height}×{width} is not divisible by patch size {patch_size}; "
                f"choose a patch size that divides {math.gcd(height, width)}"
            )
        self.patch_size = patch_size
        self.grid = (height // patch_size, width // patch_size)
        self.projection = xavier_initialised(nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        if x.device.type != "cpu":
            return self.projection(x).flatten(2).transpose(1, 2).contiguous()  # (B, D, H/p, W/p) → (B, N, D)
        p = self.patch_size
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)  # (B, N, C·p²)
        return product(patches, self.projection.weight.flatten(1), self.projection.bias)


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "1 N D"]:
    """Fixed two-dimensional sine-cosine table: the first half of D encodes the column, the second the row.

    Each half is [sin, cos] of position · 10000^(−i/(D/4)) (Vaswani et al. 2017, section 3.5, in each axis). The column
    comes first because published DiT weights expect it.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} is not divisible by 4, which sine-cosine positions need; use positions='learned'")
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    rates = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    halves = []
    for axis in (columns, rows):
        angles = axis.reshape(-1, 1) * rates  # (N, D/4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()[None]


def position_table(kind: str, grid: tuple[int, int], dim: int) -> nn.Parameter:
    """A (1, N, D) table: ``"learned"`` (trained, starts at N(0, 0.02²)) or ``"sincos"`` (fixed)."""
    if kind == "learned":
        return nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], dim))
    if kind == "sincos":
        return nn.Parameter(sincos_positions(grid, dim), requires_grad=False)
    raise ValueError(f"unknown positions {kind!r}; choose 'learned' or 'sincos'")


class SinEmb(nn.Module):
    """Sinusoidal features of a scalar: (B,) → (B, width), [cos, sin] of t · 10000^(−i/(half − shift)), i < half.

    Frequencies run geometrically from 1 down to about 1/10000 (Vaswani et al. 2017; Ho et al. 2020), which suits times
    counted 0 … 1000: networks here multiply t in [0, 1] by their ``time_scale`` first. They are computed in fp32 at
    least, in networks of bf16 or fp16 too, where angles of up to 1000 would be wrong by whole radians.

    Args:
        width: of the features; even.
        frequency_shift: 0 as published with DiT; with 1 the last frequency is 1/10000 itself, as in diffusers' DiT.
    """

    rates: Tensor

    def __init__(self, width: int, frequency_shift: int = 0) -> None:
        super().__init__()
        half = width // 2
        if width < 2 or width % 2 or half <= frequency_shift:
            raise ValueError(
                f"width={width} of the time features must be even and at least {2 * max(1, frequency_shift + 1)}"
            )
        self.width = width
        rates = torch.exp(-math.log(10000.0) * torch.arange(half) / (half - frequency_shift))
        self.register_buffer("rates", rates, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinEmb:
        rates = self.rates
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rates.dtype in (torch.bfloat16, torch.float16):
            self.rates = rates.to(self.rates.device)
        return self

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B width"]:
        angles = t[:, None] * self.rates
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Time to a vector: SinEmb → Linear → SiLU → Linear, (B,) in [0, 1] → (B, D).

    Args:
        dim: D.
        features: width of the sinusoidal features.
        scale, offset: the sinusoid sees scale · t + offset.
        frequency_shift: of ``SinEmb``.
        at_zero: the vectors start at zero.
    """

    def __init__(
        self,
        dim: int,
        features: int,
        scale: float = 1000.0,
        offset: float = 0.0,
        frequency_shift: int = 0,
        at_zero: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset
        self.sinusoid = SinEmb(features, frequency_shift)
        layers = (Linear(features, dim), Linear(dim, dim))
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if at_zero:
            nn.init.zeros_(layers[1].weight)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        with full_precision(t):
            features = self.sinusoid(self.scale * t + self.offset)
            return self.mlp(features.to(self.mlp[0].weight.dtype))
