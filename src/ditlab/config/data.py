"""The data a run can be trained on: one section for each kind. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import tyro
from pydantic import Field, model_validator

from ditlab.config.section import Section
from ditlab.config.values import ImageSize, Place, Positive, Repeats, Settings, Shape, Side, Signed, Size, Window
from ditlab.core.errors import ConfigError


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
    scalars: tuple[str, ...] = Field((), max_length=64, description="columns of numbers to train with, such as age")
    scalar_scales: Annotated[dict[str, tuple[Signed, Positive]], tyro.conf.Suppress] = Field(
        {}, description="mean and standard deviation of each"
    )
    classes: Annotated[tuple[str, ...] | None, tyro.conf.Suppress] = Field(
        None, min_length=1, description="names of the labels, in order; None is without labels"
    )
    flip: bool = Field(False, description="mirror half of the images, left to right")
    bad_share: float = Field(0.01, ge=0, le=1, description="stop if more than this share of the files cannot be used")
    cache: Literal["auto", "on", "off"] = Field(
        "auto", description="keep the decoded images on disk, in DITLAB_CACHE; auto does so up to 16 GiB"
    )

    @model_validator(mode="after")
    def _scales_are_known(self) -> ImagesData:
        if missing := [name for name in self.scalars if name not in self.scalar_scales]:
            raise ConfigError(f"data.scalars: {missing[0]} has no mean and std; ditlab.recipe finds them in the data")
        return self


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


class ScalarConfig(Section):
    """A number that is known of each sample; networks see (value − mean)/std."""

    unit: str = ""
    mean: Signed = 0.0
    std: Positive = 1.0


Scalars = Annotated[dict[str, ScalarConfig], Field(max_length=64)]


class OwnData(Section):
    """A data set of one's own: one registered under a name, or an object that was given to ``ditlab.fit``.

    Its shape and conditions are recorded when it is trained on, so that the run can be sampled without the data.
    """

    prefix: ClassVar[str] = "data."
    kind: Annotated[Literal["own"], tyro.conf.Suppress] = "own"
    name: str = Field("", description='under which it was registered, by ditlab.register("dataset", NAME)')
    settings: Settings = Field({}, description="its arguments, each a name and a value")
    shape: Annotated[tuple[Side, ...] | None, tyro.conf.Suppress] = Field(None, min_length=1, max_length=4)
    classes: Annotated[tuple[str, ...] | None, tyro.conf.Suppress] = Field(None, min_length=1)
    scalars: Annotated[Scalars, tyro.conf.Suppress] = Field({})
    text_dim: Annotated[Size | None, tyro.conf.Suppress] = None


class LatentSpace(NamedTuple):
    """Samples are (z − shift)·scale of the latents z of an autoencoder, which may be known."""

    scale: float
    shift: float
    vae: str | None
    vae_digest: str | None = None  # sha256
