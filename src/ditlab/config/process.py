"""The processes a run can train with: one section for each kind. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import Field

from ditlab.config.section import Section
from ditlab.config.values import Positive, Settings, Share, Signed


class ProcessSection(Section):
    """What every process says of itself, so that nothing else has to know it by name."""

    prefix: ClassVar[str] = "process."
    solvers: ClassVar[tuple[str, ...]] = ()  # that it alone has, and that it is not guided with
    sampling: ClassVar[dict[str, Any]] = {}  # how to draw with it unless told otherwise
    time_scale: ClassVar[float | None] = None  # that its network should have; None is the network's own
    takes_interval: ClassVar[bool] = False  # whether its network is told cond["interval"]
    compiles: ClassVar[bool] = True  # whether its loss runs with a compiled network
    kind: str
    condition_dropout: Share = Field(0.1, description="share of samples trained without their conditions")

    @property
    def guided(self) -> bool:
        """Whether guidance is part of its training, so that it needs labels."""
        return False

    @property
    def extra_passes(self) -> float:
        """Forward passes that a sample costs in training beside one and its backward pass."""
        return 0.0

    @property
    def steady(self) -> str | None:
        """Why its loss says nothing about how well it trains; None if it does say so."""
        return None


class FlowConfig(ProcessSection):
    """Flow matching. Unlike ``FlowMatching()`` itself, training spreads its times evenly over each batch."""

    kind: Annotated[Literal["flow"], tyro.conf.Suppress] = "flow"
    path: Literal["linear", "cosine"] = Field("linear", description="from data to noise")
    times: Literal["uniform", "stratified", "logit-normal"] = Field(
        "stratified", description="density of training times"
    )
    times_mean: Signed = Field(0.0, description="of logit-normal times, before the sigmoid")
    times_std: Positive = Field(1.0, description="of logit-normal times, before the sigmoid")
    weight: Literal["uniform", "min-snr"] = Field("uniform", description="of the loss by time; min-snr is min-SNR-5")
    shift: Positive = Field(1.0, description="above 1 moves training times towards the noise, below 1 towards the data")


class DDPMConfig(ProcessSection):
    """Denoising diffusion on a discrete variance-preserving path."""

    kind: Annotated[Literal["ddpm"], tyro.conf.Suppress] = "ddpm"
    steps: int = Field(1000, ge=1, le=10**6, description="published diffusion steps")
    schedule: Literal["linear", "cosine"] = Field("linear", description="of the betas")
    target: Literal["eps", "x0", "v"] = Field("eps", description="what the network predicts")
    loss_in: Literal["target", "velocity"] = Field("target", description="whose squared error is trained")
    weight: Literal["uniform", "min-snr"] = Field("uniform", description="of the loss by time; min-snr is min-SNR-5")
    first_term: Literal["pixels", "density"] = Field(
        "pixels", description="of a learned variance's bound: 8-bit pixels, or a density, as of latents"
    )


class MeanFlowConfig(ProcessSection):
    """MeanFlow: average velocities, for sampling in one step or a few.

    The paper's settings but for those that circles were trained with (docs/few-steps.md): flow_share, times, tangent;
    and the network's time_scale, which a derivative in t needs small.
    """

    solvers: ClassVar[tuple[str, ...]] = ("average",)
    sampling: ClassVar[dict[str, Any]] = {"solver": "average", "steps": 1}
    time_scale: ClassVar[float | None] = 30.0  # its loss holds the network's derivative in t, which 1000 would swamp
    takes_interval: ClassVar[bool] = True
    compiles: ClassVar[bool] = False
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

    @property
    def guided(self) -> bool:
        return self.guidance != 1

    @property
    def extra_passes(self) -> float:
        """A derivative is three passes, for samples whose interval is not 0; their own velocity one; guidance two.

        Compared with counts of real losses and their backward passes.
        """
        moved = 3 + (self.tangent == "marginal")
        return (1 - self.flow_share) * moved + 2 * self.guided

    @property
    def steady(self) -> str | None:
        return "MeanFlow's loss is divided by its own size, so it stays near 1" if self.adaptive_power > 0 else None


class OwnProcess(ProcessSection):
    """A process of your own, registered under a name."""

    kind: Annotated[Literal["own"], tyro.conf.Suppress] = "own"
    name: str = Field("", description='under which it was registered, by ditlab.register("process", NAME)')
    settings: Settings = Field({}, description="its arguments, each a name and a value")
