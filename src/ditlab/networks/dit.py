"""The diffusion transformer (Peebles & Xie 2023, "Scalable Diffusion Models with Transformers")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.core.registry import CONDITIONINGS
from ditlab.networks.conditioner import Cond, Conditioner, Embedded, Tokens, make_conditioner
from ditlab.networks.conditionings import Conditioning
from ditlab.networks.embeddings import PatchEmbed, RotaryPositions, check_input, check_sizes, position_table
from ditlab.networks.layers import (
    MLP,
    NORMS,
    Attention,
    Linear,
    Norm,
    SwiGLU,
    check_heads,
    choose,
    layer_norm,
    zero_initialised,
)
from ditlab.networks.modulation import gated_sum, modulate
from ditlab.networks.presets import Published, preset


class DiTBlock(nn.Module):
    """Attention and MLP, each on normalised and modulated tokens, and each added to them.

    x ← x + gate ⊙ attn((1 + scale) ⊙ norm(x) + shift), and the same with the MLP.

    ``modulation``, the kind of conditioning, computes shift, scale and gate of both branches.
    """

    def __init__(self, modulation: Conditioning, attn: Attention, mlp: nn.Module, norm: Norm = layer_norm) -> None:
        super().__init__()
        self.modulation = modulation
        self.attn = attn
        self.mlp = mlp
        self.norm = norm

    def forward(
        self, x: Float[Tensor, "B N D"], embedded: Embedded, mask: Bool[Tensor, "B 1 1 N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        attn, mlp = self.modulation(embedded)
        x = gated_sum(x, attn.gate, self.attn(modulate(x, attn, self.norm), mask))
        x = self.modulation.between(x, embedded)
        return gated_sum(x, mlp.gate, self.mlp(modulate(x, mlp, self.norm)))


class FinalLayer(nn.Module):
    """The last norm, modulated, and a zero-initialised linear layer to the p²·C values of each patch."""

    def __init__(self, dim: int, outputs: int, modulation: nn.Module, norm: Norm = layer_norm) -> None:
        super().__init__()
        self.modulation = modulation
        self.linear = zero_initialised(Linear(dim, outputs))
        self.norm = norm

    def forward(self, x: Float[Tensor, "B N D"], embedded: Embedded) -> Float[Tensor, "B N P"]:
        return self.linear(modulate(x, self.modulation(embedded), self.norm))


class PatchTransformer(nn.Module):
    """A diffusion transformer put together from its parts: image → patches → blocks → patches → image.

    Args:
        patch_embed: cuts the image into N tokens.
        positions: (1, N, D), added to the tokens.
        conditioner: embeds the time and the conditions.
        blocks: L of one kind of conditioning.
        final: from tokens to p²·C values each, or 2·p²·C with a learned variance.
        block_conditioners: of the second to the last block, where each block has its own; otherwise all share one.

    Shapes: ``net(x (B, C, H, W), t (B,) in [0, 1], cond) -> (B, C or 2C, H, W)``; ``cond`` maps names to tensors, such
    as ``{"label": (B,) int64}``. Conditions that are not given are null: the null label, an unknown scalar, no text.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        positions: nn.Parameter,
        conditioner: Conditioner,
        blocks: Sequence[DiTBlock],
        final: FinalLayer,
        block_conditioners: Sequence[Conditioner] = (),
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.positions = positions
        self.conditioner = conditioner
        self.block_conditioners = nn.ModuleList(block_conditioners)
        self.blocks = nn.ModuleList(blocks)
        self.final = final
        self.image_size, self.channels = patch_embed.image_size, patch_embed.channels
        self.out_channels = final.linear.out_features // patch_embed.patch_size**2
        self.learned_variance = self.out_channels == 2 * self.channels
        self.num_classes, self.null_label = conditioner.labels.num_classes, conditioner.labels.has_null
        self.sequence, self.context = blocks[0].modulation.sequence, blocks[0].modulation.context

    def null_condition(self, cond: Cond) -> dict[str, Tensor]:
        """The null of each condition, in the same shape: the null label, NaN for scalars and text; an interval stays.

        With ``null_label=False`` a label is an ``InputError``.
        """
        return self.conditioner.null(cond)

    @property
    def patches(self) -> range:
        """Which tokens of the sequence are patches: the first N."""
        height, width = self.patch_embed.grid
        return range(height * width)

    def token_names(self, cond: Cond | None, which: Sequence[Tokens] | None = None) -> tuple[str, ...]:
        """The names of the tokens that follow the patches in the sequence, or of the ``which`` ("parts", "text")."""
        which = self.sequence if which is None else which
        parts = self.conditioner.part_names if "parts" in which else ()
        if "text" not in which or self.conditioner.text is None:
            return parts
        length = cond["text"].shape[1] if cond and "text" in cond else 0
        return (*parts, "no text", *(f"text {i}" for i in range(length)))

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], cond: Cond | None = None
    ) -> Float[Tensor, "B C2 H W"]:
        check_input(self, x, t, (self.channels, *self.image_size))
        self.conditioner.check(cond, x.shape[0])
        embedded = self.conditioner(t, cond)
        tokens = self.patch_embed(x) + self.positions  # (B, N, D)
        patches = tokens.shape[1]
        extra, mask = embedded.tokens(self.sequence)
        if extra is not None:
            tokens = torch.cat([tokens, extra], dim=1)  # (B, N + K, D)
            mask = None if mask is None else F.pad(mask, (patches, 0), value=True)  # (B, 1, 1, N + K)
        for i, block in enumerate(self.blocks):
            own = self.block_conditioners[i - 1](t, cond) if i and self.block_conditioners else embedded
            tokens = block(tokens, own, mask)  # (B, N + K, D)
        if extra is not None:
            tokens = tokens[:, :patches]
        return self.unpatchify(self.final(tokens, embedded))  # (B, N, p²·C) → (B, C, H, W)

    def unpatchify(self, tokens: Float[Tensor, "B N P"]) -> Float[Tensor, "B C H W"]:
        """Lay the p²·C values of each token out as its patch of the image."""
        height, width = self.patch_embed.grid
        p = self.patch_embed.patch_size
        return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=p, q=p)


class DiT(PatchTransformer):
    """The diffusion transformer of given sizes. At initialisation its output is zero.

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
        interval: whether the network takes ``cond["interval"]`` (B,), t − r: MeanFlow's second time. Absent is 0.
        scalars: names of further conditions, one float of the order of 1 for each sample. NaN or absent is "unknown".
        text_dim: width D_text of token features, or None for a network without text. The network takes ``cond["text"]``
            (B, L, D_text) of any L and, optionally, ``cond["text_mask"]`` (B, L), True for tokens to read. Tokens that
            are NaN are not read. The order of tokens counts only if the features contain it.
        qk_norm: divide queries and keys by their root mean square, with learned scales.
        norm: ``"layer"`` or ``"rms"``.
        mlp: ``"gelu"`` or ``"swiglu"``, with about as many parameters.
        rotary: turn queries and keys by the positions of their patches, in addition to ``positions``.
        time_scale: the sinusoidal features see time_scale · t.
        published: details that published weights fix; None for a network trained from scratch.

    Raises:
        ValueError: sizes that do not divide, or an unknown option.
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
        interval: bool = False,
        scalars: Sequence[str] = (),
        text_dim: int | None = None,
        qk_norm: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        mlp: Literal["gelu", "swiglu"] = "gelu",
        rotary: bool = False,
        time_scale: float = 1000.0,
        published: Published | None = None,
    ) -> None:
        details, kind = published or Published(), CONDITIONINGS[conditioning]
        hidden, width = int(dim * mlp_ratio), 2 * channels if learned_variance else channels
        check_sizes(channels=channels, dim=dim, depth=depth, mlp_hidden=hidden)
        check_heads(dim, heads)
        of_blocks = choose("embedders", details.embedders, {"shared": 0, "per-block": depth - 1})
        if of_blocks and "parts" in kind.sequence:
            raise ValueError(f"conditioning {conditioning!r} has one token of each condition: use embedders='shared'")
        patch_embed = PatchEmbed(image_size, patch_size, channels, dim)
        table = position_table(positions, patch_embed.grid, dim)
        embed = partial(make_conditioner, dim, num_classes, interval, scalars, time_scale, details)
        conditioner = embed(text_dim)
        block_conditioners = [embed(text_dim if "text" in kind.context else None) for _ in range(of_blocks)]
        mlps: dict[str, Callable[..., nn.Module]] = {"gelu": partial(MLP, gelu=details.gelu), "swiglu": SwiGLU}
        make_mlp = choose("mlp", mlp, mlps)
        turn = RotaryPositions(patch_embed.grid, dim // heads) if rotary else None
        norm_before = choose("norm", norm, NORMS)
        blocks = [
            DiTBlock(kind(dim, heads), Attention(dim, heads, qk_norm, turn), make_mlp(dim, hidden), norm_before)
            for _ in range(depth)
        ]
        final = FinalLayer(dim, patch_size**2 * width, kind.final(dim), norm_before)
        super().__init__(patch_embed, table, conditioner, blocks, final, block_conditioners)

    @staticmethod
    def preset(name: str, **overrides: Any) -> DiT:
        """A published size by name, such as ``"DiT-XL/2"``: S, B, L or XL, patch size 8, 4 or 2.

        Latents 32×32×4, sine-cosine positions, MLP ratio 4, learned variance; ``overrides`` are arguments of ``DiT``.
        """
        return build_dit(**{**preset(name), **overrides})


def build_dit(**fields: Any) -> DiT:
    """The DiT of a configuration or a preset, whose fields are the arguments of ``DiT`` and those of ``Published``."""
    details = {name: fields.pop(name) for name in Published._fields if name in fields}
    return DiT(**fields, published=Published(**details))
