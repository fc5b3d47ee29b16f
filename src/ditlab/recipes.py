"""Ready-made configurations, by name: what each makes, how long it takes, what to expect. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

from ditlab.config import (
    AdamWConfig,
    CirclesData,
    Config,
    DDPMConfig,
    DigitsData,
    DiTConfig,
    FlowConfig,
    ImagesData,
    LatentsData,
    MLPConfig,
    PointsData,
    SamplingConfig,
)
from ditlab.core.errors import InputError
from ditlab.core.registry import RECIPES as RECIPES
from ditlab.data.images.survey import Survey
from ditlab.data.latents.survey import StoreSurvey
from ditlab.networks.presets import preset as preset_sizes


@RECIPES.provide("circles")
def circles() -> Config:
    """The lesson's DiT (252,496 parameters) draws discs on 16×16 images; about three minutes on two CPU cores.

    ``ditlab train circles``, 4,000 steps of 128. Expect 0.95 to 0.97 of 1,000 samples to be valid circles.
    """
    return Config(
        data=CirclesData(),
        network=DiTConfig(),
        process=FlowConfig(shift=0.5),  # small discs fail most: train more where little noise is left
    )


@RECIPES.provide("points")
def points() -> Config:
    """An MLP (41,858 parameters) learns a distribution of points in the plane; under half a minute on two CPU cores.

    ``ditlab train points --data.name moons``, 8,000 steps of 512. Expect an energy distance of about 1.3 × its floor.
    """
    return Config(
        data=PointsData(),
        network=MLPConfig(depth=3),
        steps=8000,
        batch_size=512,
        lr=0.01,
        ema_decay=0.999,
        precision="fp32",  # points are two numbers: bf16 would round them, and there is no large product to speed up
        checkpoint_every=4000,
        preview_every=2000,
    )


@RECIPES.provide("digits")
def digits() -> Config:
    """A DiT draws the digit it is asked for, learned from 898 handwritten ones; about three minutes on two CPU cores.

    ``ditlab train digits``, 4,000 steps of 128, 8×8 pixels. Expect a judge to read 0.99 of the samples as asked for, at
    guidance 2.
    """
    return Config(
        data=DigitsData(),
        network=DiTConfig(patch_size=2),
        sampling=SamplingConfig(guidance=2.0),
    )


ANY_FOLDER = Survey("FOLDER", 10_000, (32, 32), 3, ("cats", "dogs"))  # where help is asked for without a path
LARGEST_OWN_SIZE = 64  # pixels, up to which images are trained on at the size they have
LARGEST_SMALL = 40 * 40  # pixels of an image that a CPU can be trained on in minutes
SMALL_TOKENS, LARGE_TOKENS, MOST_TOKENS = 49, 196, 1024  # fewest patches, of small images and of others; most
MOST_EPOCHS = 500


@RECIPES.provide("images")
def images(survey: Survey = ANY_FOLDER, image_size: tuple[int, ...] | None = None) -> Config:
    """A DiT learns the images in a folder, each sub-folder being a class; the time depends on how many and how large.

    ``ditlab train images --data.path FOLDER --data.image-size 32``, up to 3,000 steps of 128 for images of up to 40×40
    pixels; seven or eight minutes on two CPU cores. Expect ten digits to be read as asked for, and pictures such as
    CIFAR-10's to have the colours and layout of their class. It says what it chose; any of it can be changed.

    Args:
        survey: what was seen of the images.
        image_size: the side of a square, or height and width; None is their own, if it is one and at most 64×64.

    Raises:
        InputError: an image size has to be given, or one that can be cut into patches.
    """
    if image_size is None and survey.size is None:
        raise InputError(f"the images in {survey.path} are of several sizes: add --data.image-size 32, for example")
    if image_size is None and max(survey.size or ()) > LARGEST_OWN_SIZE:
        height, width = survey.size or (0, 0)
        raise InputError(
            f"the images in {survey.path} are of {height}×{width} pixels: add --data.image-size 32 or another size, "
            f"the side of a square or height and width"
        )
    data = ImagesData(
        path=survey.path,
        image_size=image_size or survey.size,
        channels=survey.channels,
        classes=survey.classes,
        scalars=tuple(survey.scalars),
        scalar_scales=survey.scalars,
    )
    return Config(data=data, **choose_for_images(data, survey.count))


def choose_for_images(data: ImagesData, count: int) -> dict[str, Any]:
    """Network, batch and steps for ``count`` images of one size, as fields of ``Config``.

    Up to 40×40 pixels what minutes on a CPU can train, 3,000 steps of 128. Above, the published DiT-S and its learning
    rate (Peebles & Xie 2023), for a GPU. Few images are seen at most 500 times each, and in no step twice.

    Raises:
        InputError: the size can only be cut into more than 1,024 patches.
    """
    return _for_images(data.image_size[0], data.image_size[-1], count, data.classes is not None)


def _for_images(height: int, width: int, count: int, labelled: bool) -> dict[str, Any]:
    small = height * width <= LARGEST_SMALL
    patch_size = _patch_size(height, width, SMALL_TOKENS if small else LARGE_TOKENS)
    return _chosen(patch_size, count, min(128, count), 100_000, small, labelled)


MANY = 10**9  # samples, where nobody knows how many there are


def choose_for_shape(shape: tuple[int, ...], labelled: bool) -> dict[str, Any]:
    """Network, batch and steps for a data set of one's own: those of images, and of points for any other shape.

    Raises:
        InputError: as ``choose_for_images``.
    """
    if len(shape) == 3:
        return _for_images(shape[1], shape[2], MANY, labelled)
    return {name: value for name, value in points() if name != "data"}


def _chosen(patch_size: int, count: int, batch_size: int, most: int, small: bool, labelled: bool) -> dict[str, Any]:
    """What images and latents have in common; ``most`` is of steps of a large network."""
    chosen: dict[str, Any] = {
        "network": DiTConfig(patch_size=patch_size, dim=128),
        "process": FlowConfig(times="logit-normal"),
        "batch_size": batch_size,
        "steps": min(3000 if small else most, math.ceil(MOST_EPOCHS * count / batch_size)),
        "sampling": SamplingConfig(guidance=2.0) if labelled else SamplingConfig(),
        "checkpoint_every": 500,
        "keep_last": 3,
    }
    if not small:
        chosen |= {
            "network": DiTConfig(patch_size=patch_size, dim=384, depth=12, heads=6, mlp_ratio=4.0, positions="sincos"),
            "optimizer": AdamWConfig(),
            "lr": 1e-4,
            "ema_decay": 0.9999,
            "checkpoint_every": 5000,
            "preview_every": 5000,
        }
    return chosen


def _patch_size(height: int, width: int, fewest: int) -> int:
    """The largest that leaves at least ``fewest`` patches."""
    common = math.gcd(height, width)
    sides = [side for side in range(1, common + 1) if common % side == 0 and height * width >= fewest * side**2]
    patch_size = max(sides, default=1)
    if height * width > MOST_TOKENS * patch_size**2:
        near = [max(16, round(side / 16) * 16) for side in (height, width)]
        raise InputError(
            f"--data.image-size {height} {width} has no patch size that leaves at most {MOST_TOKENS:,} patches: use "
            f"--data.image-size {near[0]} {near[1]}, for example"
        )
    return patch_size


STABLE_DIFFUSION_SCALE = 0.18215  # of the autoencoder whose latents published DiT were trained on
ANY_STORE = StoreSurvey("STORE", 10_000, (4, 32, 32), ("cats", "dogs"), True, 1.0, 0.0, None, None, 10_000 * 2**15)
IMAGENET = StoreSurvey(  # its 1,281,167 training images at 256×256, as ditlab latents encode would store them
    "latents/imagenet256",
    1_281_167,
    (4, 32, 32),
    tuple(map(str, range(1000))),
    True,
    STABLE_DIFFUSION_SCALE,
    0.0,
    "stabilityai/sd-vae-ft-mse",
    None,
    1_281_167 * 2**15,
)
SMALL_LATENT = 16 * 16  # values of a channel that a CPU can be trained on in minutes


@RECIPES.provide("latents")
def latents(seen: StoreSurvey = ANY_STORE, preset: str | None = None) -> Config:
    """A DiT learns the latents that ``ditlab latents encode`` made of images; large ones want a GPU.

    ``ditlab train latents --data.path STORE``, up to 3,000 steps of 128 for latents of up to 16×16, which take a CPU
    some minutes; up to 400,000 steps of 256 of the published DiT-S, or of --preset, for others. ``ditlab sample``
    decodes what it draws.

    Args:
        seen: what the store says of itself.
        preset: a published size, as in ``published.PRESETS``.

    Raises:
        InputError: an unknown preset.
    """
    data = _latents_data(seen, flip=False)
    return Config(data=data, **choose_for_latents(data, seen.count, preset))


@RECIPES.provide("imagenet256")
def imagenet256(seen: StoreSurvey = IMAGENET, preset: str | None = None) -> Config:
    """DiT-XL/2 (675,129,632 parameters) as published, on the latents of ImageNet at 256×256; days on several GPUs.

    ``ditlab train imagenet256 --data.path STORE``, 7,000,000 steps of 256 (Peebles & Xie 2023): DDPM with 1,000 linear
    steps, eps and a learned variance; AdamW at a constant 1e-4 without warm-up, decay or clipping; averages of 0.9999;
    a tenth of the labels dropped; half of the images mirrored. The authors report a Fréchet distance of 2.27 at
    guidance 1.5. It differs where the last step's likelihood is one of latents and not of 8-bit pixels, and where the
    average forgets the first weights sooner.

    Args:
        seen: what the store says of itself.
        preset: a smaller published size, such as "DiT-B/4".

    Raises:
        InputError: an unknown preset.
    """
    return Config(
        data=_latents_data(seen, flip=True),
        network=published_network(preset or "DiT-XL/2", learned_variance=True),
        process=DDPMConfig(first_term="density"),
        optimizer=AdamWConfig(),
        sampling=SamplingConfig(steps=250, solver="ancestral", guidance=1.5),
        steps=7_000_000,
        batch_size=256,
        lr=1e-4,
        warmup_steps=0,
        schedule="constant",
        grad_clip=UNCLIPPED,
        ema_decay=0.9999,
        keep_last=3,
        keep_every=500_000,
        log_every=100,
        checkpoint_every=5_000,
        preview_every=50_000,
        record_every=5_000,
    )


UNCLIPPED = 1e9  # a norm of the gradient that is never reached


def _latents_data(seen: StoreSurvey, flip: bool) -> LatentsData:
    return LatentsData(
        path=seen.path,
        shape=seen.shape,
        classes=seen.classes,
        flip=flip and seen.mirrored,
        latent_scale=seen.latent_scale,
        latent_shift=seen.latent_shift,
        vae=seen.vae,
        vae_digest=seen.vae_digest,
    )


def published_network(name: str, learned_variance: bool = False) -> DiTConfig:
    """A DiT of a published size, whose time is the published index: k = 1000·t − 1.

    Raises:
        InputError: an unknown name.
    """
    try:
        sizes = preset_sizes(name)
    except ValueError as error:
        raise InputError(f"--preset: {error}") from None
    own = {field: value for field, value in sizes.items() if field not in ("image_size", "channels")}
    offset = {"time_offset": -1.0} if learned_variance else {}
    return DiTConfig(**{**own, "learned_variance": learned_variance, **offset})


def choose_for_latents(data: LatentsData, count: int, preset: str | None = None) -> dict[str, Any]:
    """Network, batch and steps for ``count`` latents, as fields of ``Config``; as ``choose_for_images`` does.

    Raises:
        InputError: an unknown preset, or latents that no patch cuts into at most 1,024.
    """
    _, height, width = data.shape
    small = height * width <= SMALL_LATENT and preset is None
    batch_size = min(128 if small else 256, count)
    patch_size = _patch_of_latents(height, width, SMALL_TOKENS if small else LARGE_TOKENS)
    chosen = _chosen(patch_size, count, batch_size, 400_000, small, data.classes is not None)
    if not small:
        chosen["record_every"] = 1000
    return chosen if preset is None else {**chosen, "network": published_network(preset)}


def _patch_of_latents(height: int, width: int, fewest: int) -> int:
    try:
        return _patch_size(height, width, fewest)
    except InputError:
        raise InputError(
            f"latents of {height}×{width} have no patch size that leaves at most {MOST_TOKENS:,} patches: encode the "
            f"images at another --data.image-size"
        ) from None


def unguided(sampling: SamplingConfig) -> SamplingConfig:
    """The same without guidance."""
    fields = ("guidance", "guidance_interval", "guidance_rescale", "guidance_channels")
    return sampling.model_copy(update={name: SamplingConfig.model_fields[name].default for name in fields})
