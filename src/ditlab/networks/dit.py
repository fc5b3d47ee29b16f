"""The diffusion transformer (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers")."""

from __future__ import annotations

from typing import Any, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.networks.conditioning import AdaLNZero, gated_sum, modulate
from ditlab.networks.conditions import Condition, Conditioner, Labels
from ditlab.networks.embeddings import (
    PatchEmbed,
    TimeEmbedding,
    as_pair,
    check_sizes,
    check_times,
    position_table,
)
from ditlab.networks.layers import MLP, Attention, full_precision, zero_initialised
from ditlab.networks.published import preset


class DiTBlock(nn.Module):
    """Attention and MLP on tokens, each normalised, modulated by c, and added back through a gate that starts at 0."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, gelu: Literal["exact", "tanh"]) -> None:
        super().__init__()
        self.modulation = AdaLNZero(dim)
        self.attn = Attention(dim, heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio), gelu)

    def forward(self, x: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N D"]:
        attn, mlp = self.modulation(c)
        x = gated_sum(x, attn.gate, self.attn(modulate(x, attn.shift, attn.scale)))
        return gated_sum(x, mlp.gate, self.mlp(modulate(x, mlp.shift, mlp.scale)))


class FinalLayer(nn.Module):
    """adaLN without a gate, for no residual is left to gate, and a zero-initialised linear to p²·C values a token."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.modulation = zero_initialised(nn.Linear(dim, 2 * dim))
        self.linear = zero_initialised(nn.Linear(dim, outputs))

    def forward(self, x: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N P"]:
        with full_precision(c):
            shift, scale = self.modulation(F.silu(c)).chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))


class DiT(nn.Module):
    """A vision transformer that denoises: image → patches → L modulated blocks → patches → image.

    Args:
        image_size: H = W, or (H, W), in pixels.
        patch_size: p in pixels; N = (H/p)·(W/p) tokens.
        channels: C of the image.
        dim, depth, heads: width D, number of blocks L, attention heads h.
        mlp_ratio: hidden width of a block's MLP over D.
        positions: ``"learned"`` or ``"sincos"`` (fixed).
        num_classes: number of labels, or None for a network without labels. The null label is ``num_classes``.
        conditioning: how c enters a block: ``"adaln-zero"``.
        learned_variance: predict 2C channels, the second half for the variance of a DDPM step.
        gelu: ``"exact"``, or the ``"tanh"`` approximation of the published networks.
        time_features: width of the sinusoidal time features.
        time_scale, time_offset: the sinusoid sees time_scale · t + time_offset.
        time_frequency_shift: its exponents are i/(half − shift): 0 as published, 1 as in diffusers' DiT.
        embedders: ``"shared"``, or ``"per-block"``: each block embeds time and label on its own, as in diffusers' DiT,
            and the final layer uses those of the first block.
        null_label: False for a table of labels without the null label: each sample then needs a label.
        interval: whether the network takes ``cond["interval"]`` (B,), t − r: MeanFlow's second time. Absent is 0.

    Shapes: ``net(x (B, C, H, W), t (B,) in [0, 1], cond) -> (B, C or 2C, H, W)``; ``cond`` is None or
    ``{"label": (B,) int64}``; None means the null label for all. At initialisation the output is zero.

    Raises:
        ValueError: sizes that do not divide, an unknown option, an input of the wrong shape, an unknown condition.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 16,
        patch_size: int = 4,
        channels: int = 1,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        positions: Literal["learned", "sincos"] = "learned",
        num_classes: int | None = None,
        conditioning: Literal["adaln-zero"] = "adaln-zero",
        learned_variance: bool = False,
        gelu: Literal["exact", "tanh"] = "exact",
        time_features: int = 64,
        time_scale: float = 1000.0,
        time_offset: float = 0.0,
        time_frequency_shift: int = 0,
        embedders: Literal["shared", "per-block"] = "shared",
        null_label: bool = True,
        interval: bool = False,
    ) -> None:
        super().__init__()
        if embedders not in ("shared", "per-block"):
            raise ValueError(f"unknown embedders {embedders!r}; choose 'shared' or 'per-block'")
        if conditioning != "adaln-zero":
            raise ValueError(f"unknown conditioning {conditioning!r}; choose 'adaln-zero'")
        self.image_size = as_pair(image_size)
        height, width = self.image_size
        check_sizes(
            height=height, width=width, channels=channels, dim=dim, depth=depth, mlp_hidden=int(dim * mlp_ratio)
        )
        self.channels = channels
        self.learned_variance = learned_variance
        self.out_channels = 2 * channels if learned_variance else channels
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, dim)
        self.positions = position_table(positions, self.patch_embed.grid, dim)
        self.num_classes = num_classes
        self.null_label = null_label

        def conditioner() -> Conditioner:
            time = TimeEmbedding(dim, time_features, time_scale, time_offset, time_frequency_shift)
            labels = Labels(num_classes, dim, null_label)
            second = TimeEmbedding(dim, time_features, time_scale, at_zero=True) if interval else None
            return Conditioner(time, labels, second)

        self.conditioner = conditioner()
        self.block_conditioners = nn.ModuleList(
            conditioner() for _ in range(depth - 1 if embedders == "per-block" else 0)
        )
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, mlp_ratio, gelu) for _ in range(depth))
        self.final = FinalLayer(dim, patch_size**2 * self.out_channels)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DiT:
        """A published size by name, such as ``"DiT-XL/2"``: S, B, L or XL, patch size 8, 4 or 2.

        Latents 32×32×4, sine-cosine positions, MLP ratio 4, learned variance; ``overrides`` are arguments of ``DiT``.
        """
        return cls(**{**preset(name), **overrides})

    def null_condition(self, cond: Condition) -> dict[str, Tensor]:
        """``cond`` with every label replaced by the null label; an interval stays.

        Raises:
            InputError: a network with ``null_label=False``.
        """
        return self.conditioner.null(cond)

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], cond: Condition | None = None
    ) -> Float[Tensor, "B C2 H W"]:
        if x.shape[1:] != (self.channels, *self.image_size):
            expected = ", ".join(map(str, (self.channels, *self.image_size)))
            raise ValueError(f"this DiT takes images of shape (B, {expected}), not {tuple(x.shape)}")
        check_times(x, t)
        self.conditioner.check(cond, len(x))
        c = self.conditioner(t, cond).vector  # (B, D)
        tokens = self.patch_embed(x) + self.positions  # (B, N, D)
        for i, block in enumerate(self.blocks):
            own = self.block_conditioners[i - 1](t, cond).vector if i and self.block_conditioners else c
            tokens = block(tokens, own)  # (B, N, D)
        return self.unpatchify(self.final(tokens, c))  # (B, N, p²·C) → (B, C, H, W)

    def unpatchify(self, tokens: Float[Tensor, "B N P"]) -> Float[Tensor, "B C H W"]:
        """Lay the p²·C values of each token out as its patch of the image."""
        height, width = self.patch_embed.grid
        p = self.patch_embed.patch_size
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=p, q=p)
