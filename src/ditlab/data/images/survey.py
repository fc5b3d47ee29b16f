"""A quick look at images, before anything is trained: how many, of which size, grey or in colour. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ditlab.data.images.locate import open_source
from ditlab.data.images.source import Unusable
from ditlab.errors import InputError

LOOKED_AT = 256  # images
SIDE = 64  # pixels that a look is brought to
TOLERANCE = 2  # of 255: by how much the channels of a grey image may differ, for a lossy format rounds


@dataclass(frozen=True)
class Survey:
    """What a recipe needs to know of images.

    Attributes:
        path: in full, or a name on the Hub.
        count: of files or rows that look like images.
        size: height and width, where all that were looked at have the same.
        channels: 1 if all that were looked at are grey, else 3.
        classes: the names of the labels.
        captions: how many images have one.
        rejected: how many cannot be read as files.
        other: how many files look like no images.
        notes: for the person who trains.
    """

    path: str
    count: int
    size: tuple[int, int] | None
    channels: int
    classes: tuple[str, ...] | None
    captions: int = 0
    rejected: int = 0
    other: int = 0
    notes: tuple[str, ...] = ()


def survey(path: str) -> Survey:
    """Look at up to 256 images, spread evenly.

    Raises:
        InputError: there are no images, or none of those looked at can be used.
    """
    source = open_source(path)
    count = len(source.names)
    sizes, grey, reason = set(), True, "none can be read as a file"
    for i in range(min(count, LOOKED_AT)):
        try:
            size, is_grey = _look(source.read(i * count // min(count, LOOKED_AT)))
        except Unusable as error:
            reason = str(error)
            continue
        sizes.add(size)
        grey = grey and is_grey
    if not sizes:
        raise InputError(f"none of the images in {source.location} can be used: {reason}; see ditlab data check {path}")
    return Survey(
        source.location,
        count,
        sizes.pop() if len(sizes) == 1 else None,
        1 if grey else 3,
        source.classes,
        len(source.captions),
        len(source.rejected),
        source.other.total(),
        tuple(source.notes),
    )


def _look(body: bytes) -> tuple[tuple[int, int], bool]:
    """Height and width of the upright image, and whether the image is grey."""
    from ditlab.data.images.decode import decode

    pixels, header = decode(body, (SIDE, SIDE), 3)
    values = pixels.astype("int16")
    return header.size, int((values.max(0) - values.min(0)).max()) <= TOLERANCE
