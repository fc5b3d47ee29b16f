"""The configuration of a run: frozen, validated, and enough to build everything from. Imports no torch.

Every field is a command-line option of the same name: ``config.network.patch_size`` is ``--network.patch-size``.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field, model_validator

from ditlab.config.data import (
    CirclesData,
    DigitsData,
    ExternalData,
    ImagesData,
    LatentsData,
    LatentSpace,
    OwnData,
    PointsData,
)
from ditlab.config.network import DiTConfig, MLPConfig, OwnConfig, UNetConfig
from ditlab.config.optimizer import AdamWConfig, MuonConfig
from ditlab.config.process import DDPMConfig, FlowConfig, MeanFlowConfig, OwnProcess
from ditlab.config.sampling import SamplingConfig
from ditlab.config.section import Section
from ditlab.config.values import Count, Positive, Signed, Widths
from ditlab.core.errors import ConfigError
from ditlab.core.registry import PROCESS_SOLVERS

SNAPSHOTS = 32  # of the averages in a run, by default: see docs/averages.md


DataConfig = Annotated[
    CirclesData | PointsData | DigitsData | ImagesData | LatentsData | ExternalData | OwnData,
    Field(discriminator="kind"),
]
NetworkConfig = Annotated[DiTConfig | UNetConfig | MLPConfig | OwnConfig, Field(discriminator="kind")]
ProcessConfig = Annotated[FlowConfig | DDPMConfig | MeanFlowConfig | OwnProcess, Field(discriminator="kind")]
OptimizerConfig = Annotated[MuonConfig | AdamWConfig, Field(discriminator="kind")]

KINDS: dict[str, dict[str, type[Section]]] = {
    "network": {"dit": DiTConfig, "unet": UNetConfig, "mlp": MLPConfig, "own": OwnConfig},
    "process": {"flow": FlowConfig, "ddpm": DDPMConfig, "meanflow": MeanFlowConfig, "own": OwnProcess},
    "optimizer": {"muon": MuonConfig, "adamw": AdamWConfig},
}


class KernelsConfig(Section):
    """Which kernels a CPU computes with, as this machine was measured: see ditlab.networks.kernels.Kernels."""

    prefix: ClassVar[str] = "kernels."
    onednn_from: int | None = Field(None, ge=0, lt=2**63)
    written_out: int = Field(ge=0, lt=2**63)
    written_out_training: int = Field(ge=0, lt=2**63)
    written_out_bf16: int = Field(ge=0, lt=2**63)


class Config(Section):
    """Everything that decides a run."""

    data: DataConfig
    network: NetworkConfig
    process: ProcessConfig = FlowConfig()
    optimizer: OptimizerConfig = MuonConfig()
    sampling: SamplingConfig = SamplingConfig()

    steps: int = Field(4000, ge=1, le=10**8 - 1, description="optimizer steps")
    batch_size: int = Field(128, ge=1, le=2**20, description="samples a step")
    accumulate: int = Field(
        1, ge=1, le=2**20, description="parts a batch is run in, to need less memory; must divide it"
    )
    lr: float = Field(4e-3, gt=0, le=1e3, description="peak learning rate")
    warmup_steps: int = Field(100, ge=0, le=10**9, description="steps of linear warm-up; the schedule follows")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="of the learning rate after the warm-up: a cosine that ends at 0, or as it is"
    )
    grad_clip: float = Field(1.0, gt=0, le=1e15, description="largest norm of the gradient")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="of the averaged weights, reached gradually")
    averages: Widths = Field(
        (0.05, 0.1), description="relative widths of power-function averages, for ditlab ema; none is off"
    )
    average_every: Count | None = Field(
        None, description="steps between snapshots of these averages; None is a 32nd of steps"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of initial weights, data order, times and noise")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of matrix products; auto is bf16 where this machine multiplies it faster than fp32, fp16 on V100, "
        "T4, RTX 20",
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="of the processor; None is as many as are the quickest when training begins"
    )
    kernels: Annotated[KernelsConfig | None, tyro.conf.Suppress] = Field(None, description="None is the quickest here")
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the network with torch.compile; auto does for long trainings of a DiT on a CPU"
    )
    recompute: bool = Field(False, description="compute blocks again in the backward pass instead of keeping them")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="under torchrun: every process has all weights (ddp), or a share of them (fsdp)"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")
    workers: int = Field(0, ge=0, le=256, description="processes that prepare batches ahead; they change no number")

    spike_factor: float = Field(
        10.0, gt=1, le=1e15, description="a loss this many times its running mean is not learned from"
    )
    bad_steps: Count = Field(
        10, description="steps in a row that cannot be learned from, for a spike or a NaN, that end training"
    )
    stall_after: Positive = Field(1800.0, description="seconds without a finished step that end training")
    keep_last: Count | None = Field(None, description="newest checkpoints to keep; None is all")
    keep_every: Count | None = Field(None, description="keep the checkpoints of every so many steps besides")

    log_every: Count = Field(50, description="steps between lines of metrics.jsonl")
    checkpoint_every: Count = Field(1000, description="steps between checkpoints")
    preview_every: Count = Field(500, description="steps between pictures drawn from the same noise")
    record_every: Count = Field(100, description="steps between recordings of gates and branches")
    eval_every: Count | None = Field(
        None, description="steps between lines of metrics.jsonl with figures as of ditlab eval; None is never"
    )
    eval_n: int = Field(1000, ge=2, le=10**7, description="samples that these figures are of")
    rewarmed_at: Annotated[int, tyro.conf.Suppress] = Field(0, ge=0, description="step that the schedule counts from")
    track: Literal["tensorboard", "wandb"] | None = Field(
        None, description="show metrics and previews there too; needs pip install 'ditlab[tensorboard]' or [wandb]"
    )
    plugins: Annotated[tuple[str, ...], tyro.conf.Suppress] = Field(
        (), max_length=32, description="modules that register parts of this run, as --plugin named them"
    )

    auxiliary: Annotated[dict[str, Signed], tyro.conf.arg(metavar="NAME WEIGHT [NAME WEIGHT ...]")] = Field(
        {}, description="auxiliary losses, registered by ditlab.register('loss', NAME), and their weights"
    )

    @property
    def snapshot_every(self) -> int:
        """Steps between snapshots of the averages."""
        return self.average_every or math.ceil(self.steps / SNAPSHOTS)

    @property
    def latent_space(self) -> LatentSpace | None:
        """Of which latents samples are; None where they are images or points."""
        data = self.data
        if not isinstance(data, LatentsData | ExternalData) or data.latent_scale is None:
            return None
        digest = data.vae_digest if isinstance(data, LatentsData) else None
        return LatentSpace(data.latent_scale, data.latent_shift, data.vae, digest)

    @model_validator(mode="after")
    def _goes_together(self) -> Config:
        """Refuse settings of several sections that do not go together."""
        sampling, process = self.sampling, self.process
        if self.batch_size % self.accumulate:
            raise ConfigError(f"accumulate={self.accumulate}: must divide batch_size={self.batch_size}")
        if self.compile is True and not process.compiles:
            raise ConfigError(f"compile=True: {process.kind} differentiates the network as it is; leave compile out")
        if self.compile is True and self.auxiliary:
            raise ConfigError("compile=True: auxiliary losses watch the network as it is; leave compile out")
        if self.eval_every is not None and self.data.kind == "digits" and self.eval_n < 100:
            raise ConfigError(f"eval_n={self.eval_n}: the Fréchet distance of 64 features needs at least 100 digits")
        own = sampling.solver in process.solvers
        if sampling.solver in PROCESS_SOLVERS and not own:
            raise ConfigError(f"sampling.solver={sampling.solver}: only --process meanflow learns an average velocity")
        if own and sampling.guidance != 1:
            raise ConfigError(
                f"sampling.guidance={sampling.guidance:g}: an average velocity is guided in training: process.guidance"
            )
        return self
