"""The diffusion transformer (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.core.registry import CONDITIONINGS
from ditlab.networks.conditioner import (
    Condition,
    Conditioner,
    Conditions,
    Labels,
    make_conditioner,
)
from ditlab.networks.conditionings import Conditioning, as_tokens
from ditlab.networks.embeddings import (
    PatchEmbed,
    TimeEmbedding,
    as_pair,
    check_sizes,
    check_times,
    position_table,
)
from ditlab.networks.layers import (
    MLP,
    NORMS,
    Attention,
    Linear,
    Norm,
    RotaryPositions,
    SwiGLU,
    check_heads,
    layer_norm,
    zero_initialised,
)
from ditlab.networks.modulation import gated_sum, modulate
from ditlab.networks.presets import preset


class DiTBlock(nn.Module):
    """Attention and MLP on tokens, each normalised, and added back; ``modulation`` says how the conditions enter.

    Args:
        modulation: a kind of conditioning.
        attn, mlp: the two branches, (B, N, D) → (B, N, D).
        norm: of the input of both.
    """

    def __init__(self, modulation: Conditioning, attn: Attention, mlp: nn.Module, norm: Norm = layer_norm) -> None:
        super().__init__()
        self.modulation = modulation
        self.attn = attn
        self.mlp = mlp
        self.norm = norm

    def forward(
        self, x: Float[Tensor, "B N D"], conditions: Conditions, mask: Bool[Tensor, "B 1 1 N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        attn, mlp = self.modulation(conditions)
        x = gated_sum(x, attn.gate, self.attn(modulate(x, attn, self.norm), mask))
        x = self.modulation.between(x, conditions)
        return gated_sum(x, mlp.gate, self.mlp(modulate(x, mlp, self.norm)))


class FinalLayer(nn.Module):
    """The last norm, modulated as the kind of conditioning says, and a zero-initialised linear to p²·C values."""

    def __init__(self, dim: int, outputs: int, modulation: nn.Module, norm: Norm = layer_norm) -> None:
        super().__init__()
        self.modulation = modulation
        self.linear = zero_initialised(Linear(dim, outputs))
        self.norm = norm

    def forward(self, x: Float[Tensor, "B N D"], conditions: Conditions) -> Float[Tensor, "B N P"]:
        return self.linear(modulate(x, self.modulation(conditions), self.norm))


_CHOICES = {"embedders": ("shared", "per-block"), "norm": tuple(NORMS), "mlp": ("gelu", "swiglu")}


def _chosen_kind(conditioning: str, **options: str) -> type[Conditioning]:
    """The kind of conditioning, after a look at the other words."""
    for name, option in options.items():
        if option not in _CHOICES[name]:
            raise ValueError(f"unknown {name} {option!r}; choose {' or '.join(map(repr, _CHOICES[name]))}")
    kind: type[Conditioning] = CONDITIONINGS[conditioning]
    if options["embedders"] == "per-block" and "parts" in kind.sequence:
        raise ValueError(f"conditioning {conditioning!r} has one token of each condition: use embedders='shared'")
    return kind


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
        conditioning: how the conditions enter a block: ``"adaln-zero"``, ``"adaln"``, ``"film"``, ``"in-context"``,
            ``"cross-attention"``, or a name given to ``register_conditioning``.
        learned_variance: predict 2C channels, the second half for the variance of a DDPM step.
        gelu: ``"exact"``, or the ``"tanh"`` approximation of the published networks.
        time_features: width of the sinusoidal time features.
        time_scale, time_offset: the sinusoid sees time_scale · t + time_offset.
        time_frequency_shift: its exponents are i/(half − shift): 0 as published, 1 as in diffusers' DiT.
        embedders: ``"shared"``, or ``"per-block"``: each block embeds time and label on its own, as in diffusers' DiT,
            and the final layer uses those of the first block.
        null_label: False for a table of labels without the null label: each sample then needs a label.
        interval: whether the network takes ``cond["interval"]`` (B,), t − r: MeanFlow's second time. Absent is 0.
        scalars: names of further conditions, one float for each sample, of the order of 1. NaN or absent is "unknown".
        text_dim: width D_text of token features: the network takes ``cond["text"]`` (B, L, D_text) of any L and,
            optionally, ``cond["text_mask"]`` (B, L), True where there is something to read. A token that is NaN is not
            read; order is the features' own matter. None for a network without text.
        qk_norm: queries and keys divided by their root mean square, with learned scales.
        norm: ``"layer"`` or ``"rms"``.
        mlp: ``"gelu"`` or ``"swiglu"``, of about as many parameters.
        rotary: queries and keys of the patches turned by their places, beside ``positions``.

    Shapes: ``net(x (B, C, H, W), t (B,) in [0, 1], cond) -> (B, C or 2C, H, W)``; ``cond`` maps names to tensors, such
    as ``{"label": (B,) int64}``. What is not given is null: the null label, unknown, no text; None is null altogether.
    At initialisation the output is zero.

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
        conditioning: str = "adaln-zero",
        learned_variance: bool = False,
        gelu: Literal["exact", "tanh"] = "exact",
        time_features: int = 64,
        time_scale: float = 1000.0,
        time_offset: float = 0.0,
        time_frequency_shift: int = 0,
        embedders: Literal["shared", "per-block"] = "shared",
        null_label: bool = True,
        interval: bool = False,
        scalars: Sequence[str] = (),
        text_dim: int | None = None,
        qk_norm: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        mlp: Literal["gelu", "swiglu"] = "gelu",
        rotary: bool = False,
    ) -> None:
        super().__init__()
        kind = _chosen_kind(conditioning, embedders=embedders, norm=norm, mlp=mlp)
        self.image_size = as_pair(image_size)
        height, width = self.image_size
        hidden = int(dim * mlp_ratio)
        check_sizes(height=height, width=width, channels=channels, dim=dim, depth=depth, mlp_hidden=hidden)
        check_heads(dim, heads)
        self.channels, self.learned_variance = channels, learned_variance
        self.out_channels = 2 * channels if learned_variance else channels
        self.num_classes, self.null_label = num_classes, null_label
        self.sequence, self.context = kind.sequence, kind.context
        self.patch_embed = PatchEmbed(image_size, patch_size, channels, dim)
        self.positions = position_table(positions, self.patch_embed.grid, dim)

        def conditioner(text_dim: int | None) -> Conditioner:
            time = TimeEmbedding(dim, time_features, time_scale, time_offset, time_frequency_shift)
            labels = Labels(num_classes, dim, null_label)
            return make_conditioner(time, labels, dim, time_features, interval, scalars, text_dim)

        self.conditioner = conditioner(text_dim)
        others, their_text = depth - 1 if embedders == "per-block" else 0, text_dim if "text" in kind.context else None
        self.block_conditioners = nn.ModuleList(conditioner(their_text) for _ in range(others))
        turn = RotaryPositions(self.patch_embed.grid, dim // heads) if rotary else None

        def block() -> DiTBlock:
            modulation, attn = kind(dim, heads), Attention(dim, heads, qk_norm, turn)
            own = SwiGLU(dim, hidden) if mlp == "swiglu" else MLP(dim, hidden, gelu)
            return DiTBlock(modulation, attn, own, NORMS[norm])

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.final = FinalLayer(dim, patch_size**2 * self.out_channels, kind.final(dim), NORMS[norm])

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DiT:
        """A published size by name, such as ``"DiT-XL/2"``: S, B, L or XL, patch size 8, 4 or 2.

        Latents 32×32×4, sine-cosine positions, MLP ratio 4, learned variance; ``overrides`` are arguments of ``DiT``.
        """
        return cls(**{**preset(name), **overrides})

    def null_condition(self, cond: Condition) -> dict[str, Tensor]:
        """``cond`` taken away, in the same shapes: the null label, NaN for scalars and text; an interval stays.

        Raises:
            InputError: a label on a network with ``null_label=False``.
        """
        return self.conditioner.null(cond)

    @property
    def patches(self) -> range:
        """Which tokens of the sequence are patches: the first N."""
        height, width = self.patch_embed.grid
        return range(height * width)

    def token_names(self, cond: Condition | None, which: Sequence[str] | None = None) -> tuple[str, ...]:
        """Names of the tokens that follow the patches in the sequence, or of those of ``which`` ("parts", "text")."""
        which = self.sequence if which is None else which
        parts = self.conditioner.part_names if "parts" in which else ()
        if "text" not in which or self.conditioner.text is None:
            return parts
        length = cond["text"].shape[1] if cond and "text" in cond else 0
        return (*parts, "no text", *(f"text {i}" for i in range(length)))

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], cond: Condition | None = None
    ) -> Float[Tensor, "B C2 H W"]:
        if x.shape[1:] != (self.channels, *self.image_size):
            expected = ", ".join(map(str, (self.channels, *self.image_size)))
            raise ValueError(f"this DiT takes images of shape (B, {expected}), not {tuple(x.shape)}")
        check_times(x, t)
        self.conditioner.check(cond, x.shape[0])
        conditions = self.conditioner(t, cond)
        tokens = self.patch_embed(x) + self.positions  # (B, N, D)
        patches = tokens.shape[1]
        extra, read = as_tokens(conditions, self.sequence)
        mask = None
        if extra is not None:
            tokens = torch.cat([tokens, extra], dim=1)  # (B, N + K, D)
            mask = None if read is None else F.pad(read, (patches, 0), value=True)[:, None, None]  # (B, 1, 1, N + K)
        for i, block in enumerate(self.blocks):
            own = self.block_conditioners[i - 1](t, cond) if i and self.block_conditioners else conditions
            tokens = block(tokens, own, mask)  # (B, N + K, D)
        if extra is not None:
            tokens = tokens[:, :patches]
        return self.unpatchify(self.final(tokens, conditions))  # (B, N, p²·C) → (B, C, H, W)

    def unpatchify(self, tokens: Float[Tensor, "B N P"]) -> Float[Tensor, "B C H W"]:
        """Lay the p²·C values of each token out as its patch of the image."""
        height, width = self.patch_embed.grid
        p = self.patch_embed.patch_size
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=p, q=p)
