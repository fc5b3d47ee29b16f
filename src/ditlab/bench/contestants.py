"""The networks to compare: diffusers' DiT, a plain transformer, and ours, all called alike."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ditlab.bench.sizes import Size
from ditlab.networks.costs import as_shapes
from ditlab.networks.dit import DiT
from ditlab.networks.embeddings import PatchEmbed, TimeEmbedding
from ditlab.networks.presets import Published

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, C, H, W), t (B,) in [0, 1], labels (B,) -> (B, C, H, W)
PEER, PLAIN, OURS = "diffusers", "encoder", "ditlab"


class PlainDenoiser(nn.Module):
    """The obvious first try: ``torch.nn.TransformerEncoderLayer`` on patches, time and label added to the tokens.

    Shapes: ``net(x (B, C, H, W), t (B,), label (B,) int64) -> (B, C, H, W)``.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        dim, values = size.dim, size.patch_size**2 * size.channels
        self.patch_embed = PatchEmbed(size.image_size, size.patch_size, size.channels, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, size.tokens, dim))
        self.time = TimeEmbedding(dim, 256)
        self.labels = nn.Embedding(size.num_classes, dim)
        layer = nn.TransformerEncoderLayer(
            dim, size.heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, size.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.final = nn.Linear(dim, values)
        self.patch_size = size.patch_size

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], label: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        told = self.time(t) + self.labels(label)  # (B, D)
        tokens = self.patch_embed(x) + self.positions + told[:, None]  # (B, N, D)
        values = self.final(self.norm(self.encoder(tokens)))  # (B, N, p²·C)
        return nn.functional.fold(values.transpose(1, 2), x.shape[-2:], self.patch_size, stride=self.patch_size)


class Contestant(NamedTuple):
    """A network, and how to call it."""

    name: str
    network: nn.Module
    adapt: Callable[[Callable[..., Any]], Predict]  # makes a Predict of the network, compiled or not

    @property
    def predict(self) -> Predict:
        """The network, not compiled."""
        return self.adapt(self.network)


def available() -> list[str]:
    """The contestants that can be built here; the peer needs diffusers."""
    return [*([PEER] if find_spec("diffusers") else []), PLAIN, OURS]


def contestant(name: str, size: Size) -> Contestant:
    """A contestant with fresh weights, on torch's default device."""
    return (
        Contestant(PLAIN, PlainDenoiser(size), lambda call: call)
        if name == PLAIN
        else {PEER: _peer, OURS: _ours}[name](size)
    )


def _peer(size: Size) -> Contestant:
    """diffusers' DiT: adaLN-Zero with an embedder of time and label in each block, tanh GELU, sine-cosine positions."""
    from diffusers import DiTTransformer2DModel

    network: Any = DiTTransformer2DModel(  # type: ignore[no-untyped-call]
        num_attention_heads=size.heads,
        attention_head_dim=size.dim // size.heads,
        in_channels=size.channels,
        out_channels=size.channels,
        num_layers=size.depth,
        sample_size=size.image_size,
        patch_size=size.patch_size,
        num_embeds_ada_norm=size.num_classes,
    )

    def adapt(call: Callable[..., Any]) -> Predict:
        return lambda x, t, label: call(x, timestep=(1000 * t).long(), class_labels=label).sample

    return Contestant(PEER, network, adapt)


def _ours(size: Size) -> Contestant:
    """Our DiT with the peer's geometry: the same parameters, and the same products except for one embedder.

    The peer computes the first block's embedder of time and label again for its final layer, and draws dropped labels
    in training; ours does neither.
    """
    network = DiT(
        size.image_size,
        size.patch_size,
        size.channels,
        size.dim,
        size.depth,
        size.heads,
        mlp_ratio=4.0,
        positions="sincos",
        num_classes=size.num_classes,
        published=Published(gelu="tanh", time_features=256, time_frequency_shift=1, embedders="per-block"),
    )
    return our_contestant(network)


def our_contestant(network: nn.Module) -> Contestant:
    """A network of ours, called like the others."""
    return Contestant(OURS, network, lambda call: lambda x, t, label: call(x, t, {"label": label}))


def forward_operations(entry: Contestant, size: Size) -> int:
    """Floating-point operations of matrix products, convolutions and attention in a forward pass of one sample.

    Norms, gates and activations do not count, as the limit is one of products.
    """
    shapes = entry._replace(network=as_shapes(entry.network).requires_grad_(False))
    with torch.device("meta"):
        x, t, label = torch.empty(1, *size.shape), torch.empty(1), torch.empty(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        shapes.predict(x, t, label)
    return counter.get_total_flops()
