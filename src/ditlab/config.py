"""The configuration of a run: frozen, validated, and enough to build everything from. Imports no torch.

Every field is a command-line option of the same name: ``config.network.patch_size`` is ``--network.patch-size``.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import tyro
from pydantic import Field, model_validator

from ditlab.choices import (
    SOLVER_CHOICES,
    Count,
    GridName,
    ImageSize,
    Interval,
    Place,
    Positive,
    Repeats,
    Shape,
    Signed,
    Size,
    SolverName,
    Widths,
    Window,
)
from ditlab.errors import ConfigError
from ditlab.section import Section


class CirclesData(Section):
    """16×16 images of one filled disc, made as they are needed."""

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["circles"], tyro.conf.Suppress] = "circles"


class PointsData(Section):
    """Points in the plane, made as they are needed."""

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["points"], tyro.conf.Suppress] = "points"
    name: Literal["gaussians", "moons", "swiss-roll", "checkerboard", "spirals"] = Field(
        "gaussians", description="which distribution"
    )


class DigitsData(Section):
    """Half of scikit-learn's 1,797 handwritten digits, 8×8, with labels; the other half is kept for the judge."""

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["digits"], tyro.conf.Suppress] = "digits"


class ImagesData(Section):
    """Images of a folder, a table or a data set on the Hub, brought to one size; labels are the folders' names."""

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["images"], tyro.conf.Suppress] = "images"
    path: Place = Field(description="folder of images (sub-folders are classes), parquet, tars, or a name on the Hub")
    image_size: ImageSize = Field(description="in pixels: the side of a square, or height and width")
    channels: int = Field(3, ge=1, le=1024, description="1 is grey, 3 colour, others are of the files' bands as stored")
    window: Window = Field(None, description="LOW HIGH: values over 8 bits that become black and white; auto is all")
    image_column: str | None = Field(None, description="of a table's images, or their suffix in a tar; None: the first")
    repeats: Repeats = Field({}, description="times that an epoch has a class's images; once where it is not named")
    classes: Annotated[tuple[str, ...] | None, tyro.conf.Suppress] = Field(
        None, min_length=1, description="names of the labels, in order; None is without labels"
    )
    flip: bool = Field(False, description="mirror half of the images, left to right")
    bad_share: float = Field(0.01, ge=0, le=1, description="stop if more than this share of the files cannot be used")
    cache: Literal["auto", "on", "off"] = Field(
        "auto", description="keep the decoded images on disk, in DITLAB_CACHE; auto does so up to 16 GiB"
    )


class ExternalData(Section):
    """What an imported network was trained on: known by its shape and labels alone, and not here to train on."""

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["external"], tyro.conf.Suppress] = "external"
    shape: Shape = Field((4, 32, 32), description="of a sample: channels, height, width")
    num_classes: int | None = Field(None, ge=1, le=2**22, description="number of labels")
    latent_scale: Positive | None = Field(None, description="see LatentsData; None where samples are images")
    latent_shift: Signed = Field(0.0, description="see latent_scale")
    vae: Place | None = Field(None, description="folder of the autoencoder that decodes the latents")


class LatentsData(Section):
    """Latents of images, encoded once: a store that ``ditlab latents encode`` made."""

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["latents"], tyro.conf.Suppress] = "latents"
    path: Place = Field(description="folder that ditlab latents encode made")
    shape: Annotated[Shape, tyro.conf.Suppress] = Field(description="of a latent: channels, height, width")
    classes: Annotated[tuple[str, ...] | None, tyro.conf.Suppress] = Field(
        None, min_length=1, description="names of the labels, in order; None is without labels"
    )
    flip: bool = Field(False, description="draw half of the latents from those of the mirrored images")
    latent_scale: Annotated[Positive, tyro.conf.Suppress] = Field(
        description="samples are (latents − latent_shift)·latent_scale of the autoencoder"
    )
    latent_shift: Annotated[Signed, tyro.conf.Suppress] = Field(0.0, description="see latent_scale")
    vae: Annotated[Place | None, tyro.conf.Suppress] = Field(
        None, description="folder of the autoencoder, or its name on the Hub"
    )
    vae_digest: Annotated[str | None, tyro.conf.Suppress] = Field(None, description="sha256 of the autoencoder")


class LatentSpace(NamedTuple):
    """Samples are (z − shift)·scale of the latents z of an autoencoder, which may be known."""

    scale: float
    shift: float
    vae: str | None
    vae_digest: str | None = None  # sha256


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
    settings: Annotated[dict[str, bool | int | float | str], tyro.conf.arg(metavar="NAME VALUE [NAME VALUE ...]")] = (
        Field({}, description="its arguments, each a name and a value")
    )


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


class MuonConfig(Section):
    """Muon for the matrices of the blocks, AdamW for everything else."""

    prefix: ClassVar[str] = "optimizer."
    kind: Annotated[Literal["muon"], tyro.conf.Suppress] = "muon"
    matrix_lr_ratio: Positive = Field(7.5, description="learning rate of the blocks' matrices over lr")
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon")
    beta2: float = Field(0.95, ge=0, lt=1, description="of AdamW; beta1 is 0.9")
    weight_decay: float = Field(0.0, ge=0, le=1e9, description="decoupled, on all parameters")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of Muon's products; auto is the quicker on this machine"
    )


class AdamWConfig(Section):
    """AdamW for everything."""

    prefix: ClassVar[str] = "optimizer."
    kind: Annotated[Literal["adamw"], tyro.conf.Suppress] = "adamw"
    beta2: float = Field(0.999, ge=0, lt=1, description="beta1 is 0.9")
    weight_decay: float = Field(0.0, ge=0, le=1e9, description="decoupled, on all parameters")


SNAPSHOTS = 32  # of the averages in a run, by default: see docs/averages.md


class SamplingConfig(Section):
    """How previews, ``sample`` and ``eval`` draw unless told otherwise."""

    prefix: ClassVar[str] = "sampling."
    steps: int = Field(25, ge=1, le=10**6, description="solver steps")
    solver: Annotated[SolverName, SOLVER_CHOICES] = Field("heun", description="of the reverse process")
    guidance: Signed = Field(1.0, description="classifier-free guidance scale; 1 is off")
    grid: GridName = Field("auto", description="times of the steps; auto is uniform for flow, respaced for ddpm")
    shift: Positive = Field(1.0, description="above 1 moves the times of a continuous grid towards the noise")
    guidance_interval: Interval | None = Field(None, description="guide between these two times; None is all")
    guidance_rescale: float = Field(0.0, ge=0, le=1, description="bring the guided x0 back to its spread; 0 is off")
    guidance_channels: Count | None = Field(
        None, description="guide the first so many channels alone, published DiTs 3; None is all"
    )


DataConfig = Annotated[
    CirclesData | PointsData | DigitsData | ImagesData | LatentsData | ExternalData, Field(discriminator="kind")
]
NetworkConfig = Annotated[DiTConfig | UNetConfig | MLPConfig | OwnConfig, Field(discriminator="kind")]
ProcessConfig = Annotated[FlowConfig | DDPMConfig | MeanFlowConfig, Field(discriminator="kind")]
OptimizerConfig = Annotated[MuonConfig | AdamWConfig, Field(discriminator="kind")]

KINDS: dict[str, dict[str, type[Section]]] = {
    "network": {"dit": DiTConfig, "unet": UNetConfig, "mlp": MLPConfig, "own": OwnConfig},
    "process": {"flow": FlowConfig, "ddpm": DDPMConfig, "meanflow": MeanFlowConfig},
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
        sampling, few_steps = self.sampling, self.process.kind == "meanflow"
        if self.batch_size % self.accumulate:
            raise ConfigError(f"accumulate={self.accumulate}: must divide batch_size={self.batch_size}")
        if few_steps and self.compile is True:
            raise ConfigError("compile=True: meanflow differentiates the network as it is; leave compile out")
        if self.eval_every is not None and self.data.kind == "digits" and self.eval_n < 100:
            raise ConfigError(f"eval_n={self.eval_n}: the Fréchet distance of 64 features needs at least 100 digits")
        if sampling.solver == "average" and not few_steps:
            raise ConfigError("sampling.solver=average: only --process meanflow learns an average velocity")
        if sampling.solver == "average" and sampling.guidance != 1:
            raise ConfigError(
                f"sampling.guidance={sampling.guidance:g}: an average velocity is guided in training: process.guidance"
            )
        return self
