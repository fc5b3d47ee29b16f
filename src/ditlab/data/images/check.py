"""A whole look at images before training: every file is decoded, and all that is odd is counted. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ditlab.data.images.decode_all import decode_all
from ditlab.data.images.labels import mean_and_std, numbers, readable
from ditlab.data.images.source import Progress, Rejected, Source
from ditlab.data.images.survey import Findings
from ditlab.data.images.wide import Window

SIDE = 64  # pixels of a picture on the sheet
SHOWN = 10  # pictures of a class


@dataclass
class Report:
    """What was found.

    Attributes:
        usable, rejected: how many can be trained on; those that cannot.
        classes: usable images of each class; empty without labels.
        sizes, formats, modes: how often each occurs among the usable; sizes as "height×width" of upright images.
        captions: how many images have one.
        other: files that look like no images, by suffix.
        notes: for the person who trains.
        shown: some pictures (C, H, W), uint8, of each class, or of "" without labels.
        scalars: for each column of numbers, how many images have one and how many do not, least, mean and largest.
    """

    location: str
    usable: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    captions: int = 0
    other: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    shown: dict[str, list[np.ndarray]] = field(default_factory=dict)
    scalars: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def bad_share(self) -> float:
        """Share of the files that cannot be used; 1 where there is none that can."""
        return len(self.rejected) / (self.usable + len(self.rejected)) if self.usable else 1.0

    @property
    def reasons(self) -> Counter[str]:
        """How many files cannot be used for each kind of reason."""
        return Counter(reason.partition(":")[0] for _, reason in self.rejected)


def check(
    source: Source,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    channels: int | None = None,
    window: Window | None = None,
    scalars: Sequence[str] = (),
) -> Report:
    """Decode every image of a source at a size, 64×64 unless one is asked for, and report.

    Args:
        size: height and width.
        channels, window: see ``decode``.
        scalars: columns of numbers; ``InputError`` if one does not exist, or holds something else.
    """
    report = Report(source.location, rejected=list(source.rejected), other=source.other, notes=list(source.notes))
    names = source.classes or ("",)
    report.classes = dict.fromkeys(source.classes or (), 0)
    report.captions = len(source.captions)
    report.scalars = {name: _described(numbers(source, name)) for name in scalars}
    report.shown = {name: [] for name in names}
    wanted = _spread(source.labels or [0] * len(source.names))
    found = Findings()
    for i, picture in enumerate(decode_all(source, size or (SIDE, SIDE), channels, progress, window=window)):
        if isinstance(picture, Rejected):
            report.rejected.append(picture)
            continue
        label = names[source.labels[i] if source.labels is not None else 0]
        report.usable += 1
        found.add(picture)
        if source.classes is not None:
            report.classes[label] += 1
        height, width = picture.header.size
        report.sizes[f"{height}×{width}"] += 1
        report.formats[picture.header.format] += 1
        report.modes[picture.header.mode] += 1
        if i in wanted:
            pixels = picture.pixels
            report.shown[label].append(pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]])  # bands as colours
    report.notes += found.notes(window is not None)
    report.rejected.sort(key=lambda entry: readable(entry.path))
    return report


def _described(values: list[float]) -> dict[str, float]:
    known = [value for value in values if not math.isnan(value)]
    summary = {"min": min(known), "mean": mean_and_std(known)[0], "max": max(known)}
    return {"known": len(known), "missing": len(values) - len(known), **summary}


def _spread(labels: list[int]) -> set[int]:
    """The numbers of some images of each class, spread evenly over it."""
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    return {own[k * len(own) // SHOWN] for own in members.values() for k in range(SHOWN)}
