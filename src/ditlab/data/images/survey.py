"""A quick look at images, before anything is trained: how many, of which size, grey or in colour. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ditlab.core.errors import InputError
from ditlab.data.images.labels import mean_and_std, numbers
from ditlab.data.images.open import open_source
from ditlab.data.images.source import Source, Unusable

if TYPE_CHECKING:
    from ditlab.data.images.decode import Picture
    from ditlab.data.images.wide import Window

LOOKED_AT = 256  # images
SIDE = 64  # pixels that a look is brought to
TOLERANCE = 2  # of 255: by how much the channels of a grey image may differ, for a lossy format rounds


@dataclass(frozen=True)
class Survey:
    """What a recipe needs to know of images.

    Attributes:
        count: of files or rows that look like images; ``other`` files look like none.
        size: height and width, where all that were looked at have the same.
        channels: 1 if all that were looked at are grey, else 3.
        captions, rejected: how many images have one; how many cannot be read as files.
        notes: for the person who trains.
        window: from the least to the largest value of those looked at, where some have more than 8 bits.
        scalars: mean and standard deviation of each column of numbers that was asked for.
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
    window: tuple[float, float] | None = None
    scalars: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Findings:
    """What headers of images say that their owner may want to know.

    Attributes:
        seen: how many images.
        remarks: how many have each.
        wide, span: how many have values of more than 8 bits; the least and the largest of all these.
    """

    seen: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    wide: int = 0
    span: Window | None = None

    def add(self, picture: Picture) -> None:
        self.seen += 1
        self.remarks.update(picture.header.remarks)
        if (found := picture.header.span) is not None:
            self.wide += 1
            self.span = found if self.span is None else (min(self.span[0], found[0]), max(self.span[1], found[1]))

    @property
    def window(self) -> Window | None:
        """What ``--data.window auto`` is: from the least value to the largest; None if all images have 8 bits."""
        return None if self.span is None else (self.span[0], max(self.span[1], self.span[0] + 1))

    def notes(self, windowed: bool) -> list[str]:
        """Lines for the person who trains; ``windowed`` if a window was given."""
        lines = [f"{count:,} of {self.seen:,} images have {remark}" for remark, count in self.remarks.most_common()]
        if self.span is not None and not windowed and self.span[0] >= 0 and self.span[1] <= 32767:
            bits = max(1, int(self.span[1]).bit_length())
            lines.append(
                f"{self.wide:,} of {self.seen:,} images use {self.span[0]:,.0f} to {self.span[1]:,.0f} of the 65,535 "
                f"that 16 bits can hold, and come out dark: add --data.window auto, or 0 {2**bits - 1}"
            )
        return lines


def seen_window(source: Source) -> Window | None:
    """The least and the largest value of up to 256 images; None if all of them have 8 bits."""
    return _look(source)[2].window


def survey(path: str, column: str | None = None, windowed: bool = False, scalars: Sequence[str] = ()) -> Survey:
    """Look at up to 256 images, spread evenly.

    Args:
        windowed: whether a window is given, so that no note asks for one.
        scalars: columns of numbers that the images are trained with.

    Raises:
        InputError: there are no images, none of those looked at can be used, or a column does not hold numbers.
    """
    source = open_source(path, column)
    sizes, channels, found = _look(source)
    return Survey(
        source.location,
        len(source.names),
        sizes.pop() if len(sizes) == 1 else None,
        channels,
        source.classes,
        len(source.captions),
        len(source.rejected),
        source.other.total(),
        (*source.notes, *found.notes(windowed)),
        found.window,
        {name: mean_and_std(numbers(source, name)) for name in scalars},
    )


def _look(source: Source) -> tuple[set[tuple[int, int]], int, Findings]:
    """Of up to 256 images: the sizes of the upright ones, how many channels they need, and what else was found."""
    from ditlab.data.images.decode import decode

    count = len(source.names)
    sizes, channels, grey, reason, found = set(), 3, True, "none can be read as a file", Findings()
    for i in range(min(count, LOOKED_AT)):
        try:
            picture = decode(source.read(i * count // min(count, LOOKED_AT)), (SIDE, SIDE), None, "own")
        except Unusable as error:
            reason = str(error)
            continue
        found.add(picture)
        sizes.add(picture.header.size)
        values = picture.pixels.astype("int16")
        channels = len(values)
        grey = grey and channels == 3 and int((values.max(0) - values.min(0)).max()) <= TOLERANCE
    if not sizes:
        raise InputError(
            f"none of the images in {source.location} can be used: {reason}; see ditlab data check {source.location}"
        )
    return sizes, 1 if grey else channels, found
