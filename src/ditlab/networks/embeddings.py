"""From numbers to vectors: patches, positions and times."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.networks.kernels import FullPrecisionBuffers, convolve_patches, full_precision
from ditlab.networks.layers import Linear, choose, xavier_initialised


def check_sizes(**sizes: float) -> None:
    """Raise ``ValueError`` unless all sizes are above zero."""
    for name, size in sizes.items():
        if not size > 0:
            raise ValueError(f"{name}={size} must be above 0")


def check_input(network: nn.Module, x: Tensor, t: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless samples have the network's shape, and t holds one float for each."""
    if x.shape[1:] != shape:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"this {type(network).__name__} takes samples of shape ({expected}), not {tuple(x.shape)}")
    if t.shape != x.shape[:1] or not t.is_floating_point():
        raise ValueError(
            f"t must hold one float time for each of the {len(x)} samples, not {t.dtype} of {tuple(t.shape)}"
        )


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """The size of an image or a grid as (height, width); a single number means a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


class PatchEmbed(nn.Module):
    """Cut an image into p × p patches and map each to a token: (B, C, H, W) → (B, N, D), N = (H/p)·(W/p).

    token = W · flatten(patch) + b, row by row: a convolution whose kernel equals its stride (Dosovitskiy et al. 2021,
    section 3.1). ``image_size`` is H = W, or (H, W), in pixels, and ``patch_size`` p must divide both.
    """

    def __init__(self, image_size: int | tuple[int, int], patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        height, width = self.image_size = as_pair(image_size)
        check_sizes(height=height, width=width)
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"image size {height}×{width} is not divisible by patch size {patch_size}; "
                f"choose a patch size that divides {math.gcd(height, width)}"
            )
        self.patch_size, self.channels = patch_size, channels
        self.grid = (height // patch_size, width // patch_size)
        self.projection = xavier_initialised(nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return convolve_patches(self.projection, x)


def grid_angles(grid: tuple[int, int], count: int) -> list[Float[Tensor, "N F"]]:
    """position · 10000^(−i/F), i < F, of each patch's column and of its row; patches run row by row."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    rates = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    return [axis.reshape(-1, 1) * rates for axis in (columns, rows)]


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "1 N D"]:
    """Fixed two-dimensional sine-cosine table: the first half of D encodes the column, the second the row.

    Each half is [sin, cos] of position · 10000^(−i/(D/4)) (Vaswani et al. 2017, section 3.5, for each axis). The column
    comes first because published DiT weights expect it.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} is not divisible by 4, which sine-cosine positions need; use positions='learned'")
    halves = [torch.cat([angles.sin(), angles.cos()], dim=1) for angles in grid_angles(grid, dim // 4)]
    return torch.cat(halves, dim=1).float()[None]


def position_table(kind: str, grid: tuple[int, int], dim: int) -> nn.Parameter:
    """A (1, N, D) table: ``"learned"`` (trained from N(0, 0.02²)) or ``"sincos"`` (fixed)."""
    if choose("positions", kind, {"learned": False, "sincos": True}):
        return nn.Parameter(sincos_positions(grid, dim), requires_grad=False)
    return nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], dim))


class RotaryPositions(nn.Module):
    """Turn pairs of a head's values by angles proportional to the patch's column and row.

    Values i and i + d/2 are a pair; half of the pairs turn with the column, half with the row, by position ·
    10000^(−i/(d/4)), so that q·k depends on differences of positions (Su et al. 2021, eq. 34, for each axis, as Heo et
    al. 2024 do for images). Tokens after the patches are not turned.

    Args:
        grid: rows and columns of patches; tokens run row by row.
        width: d of a head; must be divisible by 4.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(
                f"a head is {width} wide, and rotary positions need a multiple of 4; choose other heads or dim"
            )
        angles = torch.cat(grid_angles(grid, width // 4), dim=1)  # (N, d/2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Float[Tensor, "B h M d"]) -> Float[Tensor, "B h M d"]:
        patches = len(self.cos)
        one, other = x[:, :, :patches].to(self.cos.dtype).chunk(2, dim=-1)  # (B, h, N, d/2) each
        turned = torch.cat([one * self.cos - other * self.sin, one * self.sin + other * self.cos], dim=-1).to(x.dtype)
        return turned if x.shape[2] == patches else torch.cat([turned, x[:, :, patches:]], dim=2)


class SinEmb(FullPrecisionBuffers):
    """Sinusoidal features of a scalar: (B,) → (B, width), [cos, sin] of t · 10000^(−i/(half − shift)), i < half.

    Frequencies fall geometrically from 1 to about 1/10000 (Vaswani et al. 2017; Ho et al. 2020), which suits times from
    0 to 1000: networks multiply t in [0, 1] by their ``time_scale`` first. They stay in fp32 in networks of bf16 or
    fp16, where angles of up to 1000 would be wrong by whole radians.

    Args:
        width: number of features; even.
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

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B width"]:
        angles = t[:, None] * self.rates
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """A time as a vector: SinEmb → Linear → SiLU → Linear, (B,) in [0, 1] → (B, D).

    Args:
        features: number of sinusoidal features.
        scale, offset: the sinusoids see scale · t + offset.
        frequency_shift: see ``SinEmb``.
        at_zero: whether the vectors start at zero.
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
