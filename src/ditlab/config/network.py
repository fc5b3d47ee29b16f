"""The networks a run can train: one section for each kind. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from ditlab.config.section import Section
from ditlab.config.values import Settings, Signed, Size


class DiTConfig(Section):
    """A diffusion transformer; image size, channels and labels follow from the data."""

    prefix: ClassVar[str] = "network."
    kind: Annotated[Literal["dit"], tyro.conf.Suppress] = "dit"
    patch_size: int = Field(4, ge=1, le=2**14, description="side of a patch in pixels; must divide the image size")
    dim: int = Field(64, ge=4, le=2**16, description="width of a token")
    depth: int = Field(4, ge=1, le=512, description="number of blocks")
    heads: Size = Field(4, description="attention heads; must divide dim")
    mlp_ratio: float = Field(2.0, gt=0, le=64, description="hidden width of a block's MLP over dim")
    positions: Literal["learned", "sincos"] = Field("learned", description="learned or fixed sine-cosine positions")
    conditioning: str = Field(
        "adaln-zero",
        description="how time and label enter a block: adaln-zero, adaln, film, in-context, cross-attention",
    )
    learned_variance: bool = Field(False, description="predict the variance of a DDPM step too")
    gelu: Literal["exact", "tanh"] = Field("exact", description="of a block's MLP; published DiTs have tanh")
    time_features: int = Field(64, ge=2, le=2**16, description="width of the sinusoidal features of the time; even")
    time_scale: Signed = Field(1000.0, description="the sinusoid sees time_scale times t, plus time_offset")
    time_offset: Signed = Field(0.0, description="added to the scaled time")
    time_frequency_shift: int = Field(0, ge=0, le=1, description="of the sinusoid's exponents; diffusers' DiT has 1")
    embedders: Literal["shared", "per-block"] = Field(
        "shared", description="of time and label: one for all blocks, or one each, as in diffusers' DiT"
    )
    null_label: bool = Field(True, description="add a null class, which guidance needs")
    qk_norm: bool = Field(False, description="divide queries and keys by their root mean square")
    norm: Literal["layer", "rms"] = Field("layer", description="of the tokens in a block")
    mlp: Literal["gelu", "swiglu"] = Field("gelu", description="of a block; of about as many parameters")
    rotary: bool = Field(False, description="turn queries and keys by the places of their patches, beside positions")


class UNetConfig(Section):
    """The convolutional peer."""

    prefix: ClassVar[str] = "network."
    kind: Annotated[Literal["unet"], tyro.conf.Suppress] = "unet"
    width: int = Field(24, ge=4, le=2**16, description="channels at full resolution")
    multipliers: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        (1, 2), min_length=1, max_length=16, description="channels of each level over width"
    )
    heads: Size = Field(4, description="attention heads at the coarsest level; must divide its channels")


class MLPConfig(Section):
    """A multilayer perceptron on flattened samples."""

    prefix: ClassVar[str] = "network."
    kind: Annotated[Literal["mlp"], tyro.conf.Suppress] = "mlp"
    hidden: Size = Field(128, description="width of the hidden layers")
    depth: int = Field(2, ge=1, le=512, description="number of hidden layers")
    time_scale: Signed = Field(1000.0, description="the sinusoid sees time_scale times t")


class OwnConfig(Section):
    """A network of one's own, that was registered under a name."""

    prefix: ClassVar[str] = "network."
    kind: Annotated[Literal["own"], tyro.conf.Suppress] = "own"
    name: str = Field("", description="under which it was registered, by ditlab.register_network")
    settings: Settings = Field({}, description="its arguments, each a name and a value")
