"""The processes a run can train with: one section for each kind. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from ditlab.config.section import Section
from ditlab.config.values import Positive, Signed


class FlowConfig(Section):
    """Flow matching."""

    prefix: ClassVar[str] = "process."
    kind: Annotated[Literal["flow"], tyro.conf.Suppress] = "flow"
    path: Literal["linear", "cosine"] = Field("linear", description="from data to noise")
    times: Literal["uniform", "stratified", "logit-normal"] = Field(
        "stratified", description="density of training times"
    )
    shift: Positive = Field(1.0, description="above 1 moves training times towards the noise, below 1 towards the data")
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without their label")


class DDPMConfig(Section):
    """Denoising diffusion on a discrete variance-preserving path."""

    prefix: ClassVar[str] = "process."
    kind: Annotated[Literal["ddpm"], tyro.conf.Suppress] = "ddpm"
    steps: int = Field(1000, ge=1, le=10**6, description="published diffusion steps")
    schedule: Literal["linear", "cosine"] = Field("linear", description="of the betas")
    target: Literal["eps", "x0", "v"] = Field("eps", description="what the network predicts")
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without their label")
    first_term: Literal["pixels", "density"] = Field(
        "pixels", description="of a learned variance's bound: 8-bit pixels, or a density, as of latents"
    )


class MeanFlowConfig(Section):
    """MeanFlow: average velocities, for sampling in one step or a few.

    The paper's settings but for those that circles were trained with (docs/few-steps.md): flow_share, times, tangent;
    and the network's time_scale, which a derivative in t needs small.
    """

    prefix: ClassVar[str] = "process."
    kind: Annotated[Literal["meanflow"], tyro.conf.Suppress] = "meanflow"
    flow_share: float = Field(0.5, ge=0, le=1, description="share of samples trained as in flow matching, with r = t")
    times_mean: Signed = Field(0.0, description="of the logit-normal density that t and r are drawn from")
    times_std: Positive = Field(1.4, description="of the logit-normal density that t and r are drawn from")
    adaptive_power: float = Field(1.0, ge=0, le=1e9, description="p of the loss weight 1/(squared error + c)^p")
    adaptive_offset: Positive = Field(1e-3, description="c of the loss weight")
    tangent: Literal["conditional", "marginal"] = Field(
        "marginal", description="velocity along which the network is differentiated: eps - x0, or its own"
    )
    guidance: Signed = Field(1.0, description="classifier-free guidance scale folded into training; 1 is off")
    guidance_mix: float = Field(0.0, ge=0, lt=1, description="share of the network's own velocity in the guided one")
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without their label")
