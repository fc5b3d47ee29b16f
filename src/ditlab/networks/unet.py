"""A convolutional U-Net with the interface of the DiT, to compare the two (Ho et al. 2020, appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks.conditioner import Cond, Conditioner, Labels, ScalarEmbedding, check_scalar_names
from ditlab.networks.costs import on_meta, parameter_count
from ditlab.networks.embeddings import TimeEmbedding, as_pair, check_input, check_sizes
from ditlab.networks.kernels import full_precision
from ditlab.networks.layers import Attention, zero_initialised


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over groups of about eight channels."""
    groups = next(g for g in range(max(1, channels // 8), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """Norm → SiLU → conv → norm → FiLM → SiLU → conv, plus a shortcut; the last conv starts at zero.

    FiLM: h ← (1 + scale(c)) ⊙ h + shift(c) (Perez et al. 2018).
    """

    def __init__(self, channels_in: int, channels_out: int, dim: int) -> None:
        super().__init__()
        self.norm_in = group_norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.film = nn.Linear(dim, 2 * channels_out)
        self.norm_out = group_norm(channels_out)
        self.conv_out = zero_initialised(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "B C H W"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B E H W"]:
        h = self.conv_in(F.silu(self.norm_in(x)))
        with full_precision(c):
            shift, scale = self.film(F.silu(c))[:, :, None, None].chunk(2, dim=1)  # (B, E, 1, 1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.shortcut(x) + self.conv_out(F.silu(h))


class PixelAttention(nn.Module):
    """Self-attention between all pixels of a feature map, on a residual branch."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attn = Attention(channels, heads)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        return x + self.attn(tokens).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Residual blocks from fine to coarse and back, with skip connections and attention at the coarsest resolution.

    Args:
        image_size: H = W, or (H, W), in pixels; each must be divisible by 2^(levels − 1).
        width: feature channels at full resolution; level i has width · multipliers[i].
        multipliers: one for each resolution, from fine to coarse.
        heads: attention heads at the coarsest resolution.
        num_classes: number of labels, or None for a network without labels. The null label is ``num_classes``.
        scalars: names of further conditions, one float for each sample, of the order of 1; NaN or absent is unknown.

    Shapes: ``net(x (B, C, H, W), t (B,) in [0, 1], cond) -> (B, C, H, W)``. At initialisation the output is zero. The
    defaults give 255,553 parameters, about as many as the default DiT; ``UNet.sized`` finds the width for another size.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 16,
        channels: int = 1,
        width: int = 24,
        multipliers: Sequence[int] = (1, 2),
        heads: int = 4,
        num_classes: int | None = None,
        time_features: int = 64,
        scalars: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_scalar_names(scalars)
        self.image_size = as_pair(image_size)
        check_sizes(channels=channels, width=width, multipliers=min(multipliers, default=0))
        self.channels, self.num_classes = channels, num_classes
        shrink = 2 ** (len(multipliers) - 1)
        if any(side % shrink for side in self.image_size):
            raise ValueError(
                f"image size {self.image_size[0]}×{self.image_size[1]} is not divisible by {shrink}, "
                f"which {len(multipliers)} levels need; choose fewer multipliers"
            )
        dim = 2 * width
        embedded = {name: ScalarEmbedding(dim, time_features) for name in scalars}
        time, labels = TimeEmbedding(dim, time_features), Labels(num_classes, dim)
        self.conditioner = Conditioner(time, labels, scalars=embedded)
        widths = [width * m for m in multipliers]
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(before, after, dim) for before, after in zip([width, *widths[:-1]], widths, strict=True)
        )
        self.middle_in = ResidualBlock(widths[-1], widths[-1], dim)
        self.attention = PixelAttention(widths[-1], heads)
        self.middle_out = ResidualBlock(widths[-1], widths[-1], dim)
        self.up = nn.ModuleList(
            ResidualBlock(below + here, here, dim)
            for below, here in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.norm_out = group_norm(width * multipliers[0])
        self.conv_out = zero_initialised(nn.Conv2d(width * multipliers[0], channels, 3, padding=1))

    @classmethod
    def sized(cls, parameters: int, **arguments: Any) -> UNet:
        """The U-Net with the number of parameters nearest to ``parameters``; its width is a multiple of heads."""
        step = arguments.get("heads", 4)
        sizes = {w: parameter_count(on_meta(partial(cls, width=w, **arguments))) for w in range(step, 513, step)}
        return cls(width=min(sizes, key=lambda w: abs(sizes[w] - parameters)), **arguments)

    def null_condition(self, cond: Cond) -> dict[str, Tensor]:
        """``cond`` with the null label for each label and NaN for each scalar."""
        return self.conditioner.null(cond)

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], cond: Cond | None = None
    ) -> Float[Tensor, "B C H W"]:
        check_input(self, x, t, (self.channels, *self.image_size))
        self.conditioner.check(cond, x.shape[0])
        c = self.conditioner(t, cond).vector  # (B, D)
        h = self.conv_in(x)  # (B, width, H, W)
        skips = []
        for i, block in enumerate(self.down):
            h = block(h if i == 0 else F.avg_pool2d(h, 2), c)
            skips.append(h)
        h = self.middle_out(self.attention(self.middle_in(h, c)), c)
        for i, block in enumerate(self.up):
            h = h if i == 0 else F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], dim=1), c)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, C, H, W)
