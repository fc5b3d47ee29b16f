"""From words on a command line to validated options. Imports no torch."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Annotated, ClassVar, Literal, TypeVar

import tyro
from pydantic import Field

from ditlab.config import Config
from ditlab.config.section import Section
from ditlab.config.values import SOLVER_CHOICES, GridName, Interval, SolverName, Width, Window
from ditlab.core.errors import InputError
from ditlab.data.images.survey import Survey
from ditlab.data.latents.survey import StoreSurvey
from ditlab.networks.presets import PRESETS

Options = TypeVar("Options", bound=Section)

Flag = tyro.conf.FlagCreatePairsOff[bool]
Json = Annotated[Flag, tyro.conf.arg(name="json", help="print one JSON object on stdout, everything else on stderr")]
Weights = Annotated[Literal["ema", "raw"] | Annotated[float, Field(gt=0)], tyro.conf.arg(metavar="{ema,raw,SIGMA_REL}")]
RunName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(name="run", metavar="RUN", help="folder of a run, or its name in runs/")
]


class DemoOptions(Section):
    """Train the smallest DiT on circles, draw 64 samples and measure 1,000. Run again, it measures the finished run."""

    fresh: Flag = Field(False, description="throw runs/demo away and train again")
    as_json: Json = False


class ResumeOptions(Section):
    """Resume a run where it was saved.

    Only the number of steps and, with --rewarm, the schedule may change; everything else that decides its numbers is
    fixed by the run.
    """

    resume: str = Field(description="folder of a run, or its name in runs/")
    steps: int | None = Field(None, ge=1, le=10**8 - 1, description="train to this many steps instead")
    workers: int | None = Field(None, ge=0, le=256, description="prepare batches in this many processes instead")
    parallel: Literal["ddp", "fsdp"] | None = Field(
        None, description="under torchrun: keep all weights in every process (ddp) or a share in each (fsdp) instead"
    )
    compile: bool | None = Field(None, description="compile the network or not; results change by rounding")
    threads: int | None = Field(
        None, ge=1, le=4096, description="use this many threads instead; results change by rounding"
    )
    track: Literal["tensorboard", "wandb", "off"] | None = Field(
        None, description="where to show metrics and previews instead; off is nowhere else"
    )
    rewarm: Flag = Field(
        False,
        description="restart the learning-rate schedule, with its warm-up, for the steps from here to --steps",
    )
    data_path: Annotated[str | None, tyro.conf.arg(name="data.path", metavar="PATH")] = Field(
        None, description="where the run's images or latents are now; they must be the same data"
    )
    as_json: Json = False


class DrawingOptions(Section):
    """How to draw; None uses the run's own setting."""

    run: RunName
    steps: int | None = Field(None, ge=1, le=10**6, description="solver steps; None is the run's own")
    solver: Annotated[SolverName | None, SOLVER_CHOICES] = Field(
        None, description="solver of the reverse process; None is the run's own"
    )
    grid: GridName | None = Field(None, description="grid of the times; None is the run's own")
    shift: float | None = Field(None, gt=0, description="above 1 moves times towards the noise; None is the run's own")
    guidance: float | None = Field(None, description="classifier-free guidance scale, 1 is off; None is the run's own")
    guidance_interval: Interval | None = Field(None, description="guide between these two times; None is the run's own")
    guidance_rescale: float | None = Field(
        None,
        ge=0,
        le=1,
        description="rescale the guided x0 to its unguided spread; 0 is off, None the run's own",
    )
    guidance_channels: Annotated[int, Field(ge=1)] | None = Field(
        None, description="guide only this many channels, the first ones; published DiTs use 3; None is the run's own"
    )
    guide: str | None = Field(None, description="a weaker run to guide away from, instead of the null label")
    guide_step: int | None = Field(None, ge=0, description="checkpoint of that run; None is the newest")
    weights: Weights = Field("ema", description="averaged (ema), last (raw), or a tracked average such as 0.1")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to sample")
    as_json: Json = False


class SampleOptions(DrawingOptions):
    """Draw samples: a picture (.png), an array (.npz: "samples" and, if any, "labels"), or a folder of pictures."""

    first: ClassVar[tuple[str, ...]] = ("run", "n", "label", "out", "steps", "guidance", "seed")
    n: int = Field(64, ge=1, le=10**7, description="number of samples")
    out: str | None = Field(
        None,
        description="file to write, .png or .npz, or FOLDER/ for one picture each; None is samples.png of the run",
    )
    label: str | None = Field(None, description="class of all samples, by name or number; None is each in turn")
    cond: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = Field(
        (), description="condition of all samples, such as age=30 or label=cats; repeatable"
    )
    vae: str | None = Field(
        None, description="folder or Hub name of the autoencoder that decodes latents; None is the run's own"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="sample i depends only on the seed and on i")
    dtype: Literal["float32", "uint8"] = Field(
        "float32", description="type of the array: float32 from -1 to 1, or uint8 images from 0 to 255"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the network's matrix products")


class EvalOptions(DrawingOptions):
    """Draw samples and measure them against real data."""

    first: ClassVar[tuple[str, ...]] = ("run", "n", "features", "data", "steps", "guidance", "seed")
    n: int = Field(1000, ge=2, le=10**7, description="number of samples")
    nll: Flag = Field(False, description="also the likelihood of held-out data: nats for points, bits/dim for images")
    nll_n: int | None = Field(
        None, ge=2, le=10**7, description="number of held-out samples for --nll; None is 1000 points or 256 images"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the samples and of the data they are compared with")
    features: str = Field(
        "auto",
        description="features that samples are compared by: pixels, disc, classifier, inception, none, or your own "
        "function as module:function; auto is disc for circles, classifier for images, pixels otherwise",
    )
    data: str | None = Field(
        None,
        description="images, or a store of latents, to compare with; None is half of the training data",
    )
    vae: str | None = Field(
        None, description="autoencoder that decodes latents to compare images; None compares the latents"
    )
    labels: Literal["balanced", "data"] = Field(
        "balanced", description="labels to draw: each class in turn (balanced), or as frequent as in the data"
    )
    batch_size: int | None = Field(
        None, ge=1, le=2**20, description="samples drawn together; affects only memory and speed; None is up to 500"
    )


class DoctorOptions(Section):
    """Say whether a run is healthy, finished or in training, without changing it. Exits with 1 if a check fails."""

    run: RunName
    n: int = Field(1024, ge=64, le=10**6, description="number of samples to measure losses on")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to measure")
    as_json: Json = False


class CheckOptions(Section):
    """Check that a run's files are as they were written: configuration, metrics, checkpoints, recordings, pictures.

    Also checks its data: the prepared images or the store of latents. Changes nothing. Exits with 1 if something is
    damaged.
    """

    run: RunName
    as_json: Json = False


class BenchOptions(Section):
    """How fast this machine trains and samples: beside diffusers' DiT, a plain transformer, and its matrix products."""

    sizes: Annotated[str | None, tyro.conf.arg(metavar="NAME,...")] = Field(
        None, description="sizes such as tiny, lesson, S/4, B/4, XL/2; None is lesson,S/4, and B/4,XL/2 on CUDA"
    )
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE.json")] = Field(
        None, description="write the figures to this file, after each table"
    )
    machine: Flag = Field(
        False, description="only measure, in a second or two, what this processor does best, keep it and print it"
    )
    eager: Flag = Field(False, description="skip compiling, which takes minutes for each size")
    quick: Flag = Field(False, description="few rounds, nothing compiled, one process, memory not measured")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to measure")
    as_json: Json = False


class LabOptions(Section):
    """Look inside trained runs in a browser: serve a page on this machine, or write it to a single file."""

    run: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(name="run", metavar="[RUN]", help="a run, or a folder of runs")
    ] = "runs"
    first: ClassVar[tuple[str, ...]] = ("run", "port", "export", "browser")
    host: str = Field("127.0.0.1", description="address to listen on; beyond this machine, a token is required")
    port: int = Field(8137, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    export: Annotated[str | None, tyro.conf.arg(metavar="FILE.html")] = Field(
        None, description="write the page of one run to this file, and stop"
    )
    browser: bool = Field(True, description="open the page in a browser, where there is a screen")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute; auto prefers a GPU")
    as_json: Json = False


class ImportOptions(Section):
    """Make a run of a published checkpoint; see docs/checkpoints.md. Code in a checkpoint is never executed."""

    path: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH", help="a state dict, or a folder with config.json and safetensors (diffusers)"),
    ]
    format: Literal["facebook-dit", "sit", "repa", "diffusers"] = Field(
        description="format of the checkpoint; the three kinds of state dict look alike and mean different things"
    )
    out: Annotated[str, tyro.conf.arg(metavar="RUN")] = Field(description="folder of the new run")
    preset: str | None = Field(
        None, description="published size that a state dict should have: DiT-S, -B, -L or -XL, with /8, /4 or /2"
    )
    heads: int | None = Field(
        None, ge=1, description="attention heads of a state dict; None is the published number for its width"
    )
    num_classes: int | None = Field(
        None,
        ge=1,
        description="number of classes of a state dict; None reads it from the file, or takes the rows of its label "
        "table less the null label, but all of 10, 100 or 1000",
    )
    time_frequency_shift: Literal[0, 1] | None = Field(
        None, description="for a diffusers model: 1 (None) computes as diffusers does, 0 as the weights were trained"
    )
    as_json: Json = False


class ExportOptions(Section):
    """Write a run's network in a format that other programs read; see docs/checkpoints.md."""

    run: RunName
    format: Literal["ditlab", "diffusers", "facebook-dit", "onnx"] = Field(
        description="a run of these weights alone, in one file; a pipeline's folder; a state dict in "
        "facebookresearch/DiT's layout; or a file for onnxruntime"
    )
    out: str = Field(description="file or folder to write")
    weights: Weights = Field("ema", description="averaged (ema), last (raw), or a tracked average such as 0.1")
    vae: str | None = Field(
        None, description="folder of an autoencoder to copy into a diffusers pipeline; None is the run's own"
    )
    as_json: Json = False


class EmaOptions(Section):
    """Make weight averages of any length from the snapshots of a training; each becomes a run of its own.

    sample, eval, lab and export open that run like any other.
    """

    run: RunName
    sigma_rel: Annotated[tuple[Width, ...], tyro.conf.arg(metavar="SIGMA_REL...")] = Field(
        description="lengths of the averages as relative widths, 0.01 to 0.28: the standard deviation of the averaged "
        "steps over the number of steps taken",
    )
    step: int | None = Field(None, ge=1, description="step of the average, one that has a snapshot; None is the newest")
    out: Annotated[str | None, tyro.conf.arg(metavar="NEWRUN")] = Field(
        None, description="folder of the new run, for a single width; None is RUN-ema-SIGMA_REL"
    )
    as_json: Json = False


class DataCheckOptions(Section):
    """Check all images before training: which can be used, which cannot and why, and how they look.

    For a store of latents, compares every byte with its index and reports the channels' means and deviations.
    """

    path: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="PATH", help="folder of images, parquet or tar files, a name on the Hub, or a store of latents"
        ),
    ]
    image_size: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="S|H W")] = Field(
        None, description="size of the pictures on the sheet in pixels; None is 64"
    )
    channels: Annotated[int | None, tyro.conf.arg(aliases=["--data.channels"])] = Field(
        None,
        ge=1,
        le=1024,
        description="as --data.channels of training; None is 3, or all",
    )
    window: Annotated[Window, tyro.conf.arg(aliases=["--data.window"])] = Field(
        None, description="as --data.window of training"
    )
    image_column: Annotated[str | None, tyro.conf.arg(aliases=["--data.image-column"])] = Field(
        None, description="as --data.image-column of training"
    )
    scalars: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data.scalars"])] = Field(
        (), description="as --data.scalars of training"
    )
    out: str = Field("contact-sheet.png", description="contact sheet to write, with some images of each class")
    bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable files above which training refuses")
    as_json: Json = False


class LatentsEncodeOptions(Section):
    """Encode images once, to train on their latents. Run again, the command continues where it stopped.

    Any number of processes with the same options share the work: in several terminals, under torchrun, in a job array.
    """

    data_path: Annotated[str, tyro.conf.arg(name="data.path", metavar="PATH")] = Field(
        description="folder of images (sub-folders are classes), parquet or tar files, or a name on the Hub"
    )
    image_size: Annotated[tuple[int, ...], tyro.conf.arg(name="data.image-size", metavar="S|H W")] = Field(
        description="in pixels: the side of a square, or height and width"
    )
    vae: str = Field(description="folder of an AutoencoderKL (or of a pipeline with one), or its name on the Hub")
    out: str | None = Field(None, description="folder of the store; None is latents/ and the last part of PATH")
    scale: float | None = Field(None, gt=0, description="training sees (z − shift)·scale; None is the VAE's own")
    shift: float | None = Field(None, description="see --scale; None is the VAE's own, or 0")
    mirrored: bool = Field(True, description="also encode each image mirrored left to right")
    window: Annotated[Window, tyro.conf.arg(name="data.window")] = Field(
        None,
        description="LOW HIGH: values over 8 bits that become black and white; auto is the images' range",
    )
    image_column: Annotated[str | None, tyro.conf.arg(name="data.image-column")] = Field(
        None, description="column of the images in a table, or their suffix in a tar; None is the first"
    )
    dtype: Literal["float16", "float32"] = Field("float16", description="type of the stored numbers")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the VAE's matrix products")
    batch_size: int = Field(16, ge=1, le=2**16, description="images encoded together")
    shard_size: int = Field(1024, ge=1, le=2**24, description="images per file; each process writes one file at a time")
    bad_share: float = Field(0.01, ge=0, le=1, description="stop if more than this share of the files cannot be used")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to encode")
    as_json: Json = False


class TrainOptions(Config):
    """Train a recipe into a new run folder.

    The kinds of its parts decide which options there are: --network dit|unet|mlp, --process flow|ddpm|meanflow,
    --optimizer muon|adamw. A network or process of your own goes by the name it is registered under; see --plugin.
    """

    first: ClassVar[tuple[str, ...]] = ("name", "steps", "batch_size", "lr", "dry_run")
    name: str | None = Field(None, description="the run is runs/NAME; None is the recipe's name")
    dry_run: Flag = Field(False, description="print what the training would cost, and stop")
    devices: int = Field(1, ge=1, le=10**6, description="with --dry-run: number of devices")
    days: float = Field(7.0, ge=1e-3, le=10**5, description="with --dry-run: days that the training may take")
    as_json: Json = False
    survey: Annotated[Survey | StoreSurvey | None, tyro.conf.Suppress] = None
    batch_chosen: Annotated[bool, tyro.conf.Suppress] = False  # by the person, and not by the recipe

    @property
    def config(self) -> Config:
        """The configuration alone."""
        values = {name: getattr(self, name) for name in Config.model_fields}
        if self.data.kind == "images" and self.data.window == "auto" and isinstance(self.survey, Survey):
            values["data"] = self.data.model_copy(update={"window": self.survey.window})  # the run keeps the numbers
        return Config(**values)


class LatentsTrainOptions(TrainOptions):
    """Train a recipe on latents into a new run folder.

    The kinds of its parts decide which options there are: --network dit|unet|mlp, --process flow|ddpm|meanflow,
    --optimizer muon|adamw. A network or process of your own goes by the name it is registered under; see --plugin.
    """

    preset: str | None = Field(None, description=f"published size of network: {', '.join(PRESETS)}")


def parse(options: type[Options], arguments: Sequence[str], prog: str, default: Options | None = None) -> Options:
    """Read options of that type; ``--help`` prints them.

    Raises:
        InputError, ConfigError: wrong ones.
    """
    given, told = tyro.MISSING_NONPROP if default is None else default, io.StringIO()
    try:
        with redirect_stderr(told):
            return tyro.cli(
                options, args=list(arguments), prog=prog, default=given, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_in_one_line(told.getvalue())}; {prog} --help lists its options") from None


def _in_one_line(box: str) -> str:
    """What tyro says in a box with rules: what is wrong, and which options are like those that it does not know."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    blocks = [
        list(block) for rule, block in itertools.groupby(lines, lambda line: not line.strip("─-╰╯+ ")) if not rule
    ]
    wrong = " ".join(blocks[0]).partition(" Got errors:")[0].rstrip(".") if blocks else box.strip()
    like = [line.split()[0] for block in blocks if block[0].startswith("Perhaps") for line in block if line[:2] == "--"]
    return wrong + (f"; perhaps you meant {' or '.join(like)}" if like else "")
