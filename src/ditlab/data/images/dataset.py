"""Images as a data set: batches as a function of (seed, position), out of prepared images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.conditions import Conditions, Scalar, labelled
from ditlab.data.dataset import Batch
from ditlab.data.images.cache import Cache, Examined, Store, examine, place, prepare, whole, write_rejected
from ditlab.data.images.decode import decode
from ditlab.data.images.decode_all import refuse_bad
from ditlab.data.images.labels import numbers, readable
from ditlab.data.images.open import located, open_source
from ditlab.data.images.source import Progress, Rejected, Source, Unusable
from ditlab.data.images.survey import seen_window
from ditlab.data.images.wide import Window
from ditlab.data.shuffle import coins, sample_order

NAMED = 3  # classes in a message
SHOWN = 20  # classes in a message


class Images:
    """Images of one size, with labels where there are classes. Nothing is opened before it is needed.

    Args:
        image_size: height and width in pixels.
        flip: whether to mirror half of the images, each epoch other ones.
        window: "auto" is what 256 of the images use; None is 0 and 65,535.
        column: ``image_column`` of ``ImagesData``, whose fields the others are.
        scalars: columns of numbers that are known of the images, with the mean and standard deviation of each.

    Raises:
        InputError: classes that are repeated are not there.
    """

    levels: int | None = 256

    def __init__(
        self,
        path: str,
        image_size: tuple[int, int],
        channels: int = 3,
        classes: tuple[str, ...] | None = None,
        flip: bool = False,
        bad_share: float = 0.01,
        cache: Cache = "auto",
        window: Window | Literal["auto"] | None = None,
        column: str | None = None,
        repeats: Mapping[str, int] | None = None,
        scalars: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.path, self.image_size, self.classes = path, image_size, classes
        self.flip, self.bad_share, self.cache = flip, bad_share, cache
        self.shape: tuple[int, ...] = (channels, *image_size)
        self._scalars = dict(scalars or {})
        self.conditions: Conditions = {**labelled(classes), **self._scalars}
        self.column, self.repeats = column, dict(repeats or {})
        self._window = window
        self._numbers: np.ndarray | None = None  # of the images in an epoch before it is shuffled, where some repeat
        if unknown := sorted(set(self.repeats) - set(classes or ())):
            there = ", ".join((classes or ("none, for there are no labels",))[:SHOWN])
            raise InputError(f"--data.repeats names {', '.join(unknown[:NAMED])}, and the classes are {there}")
        self._known: dict[str, np.ndarray] = {}  # the scalars of the usable images, standardised
        self._store: Store | None = None
        self._folder: Path | None = None  # of the store, in another process
        self._source: Source | None = None

    def prepare(self, quarantine: Path | None = None, progress: Progress | None = None) -> str:
        """Decode every image once, or find them decoded; return their fingerprint.

        ``quarantine`` is a file to list in what cannot be used, one ``{"path": ..., "reason": ...}`` a line.

        Raises:
            InputError: the images are gone, are other ones, or too many of them cannot be used.
        """
        source = self._opened()
        if self.classes is not None and source.classes != self.classes:
            raise InputError(
                f"the classes in {self.path} are not those of this run: {_difference(source, self.classes)}"
            )
        store = prepare(source, self.image_size, self.shape[0], self.cache, progress, self.window)
        if quarantine is not None:
            write_rejected(quarantine, store.rejected)
        refuse_bad(store.rejected, store.count, self.bad_share, quarantine, "in a new run with --data.bad-share")
        for name, kind in self._scalars.items():
            values = (np.array(numbers(source, name))[store.kept] - kind.mean) / kind.std
            self._known[name] = values.astype(np.float32)
        self._store = store
        return self.fingerprint

    @property
    def prepared(self) -> bool:
        """Whether ``prepare`` has nothing left to do; False on the Hub, for nothing is fetched to find out."""
        if self._store is not None:
            return True
        folder = self._place()
        return folder is not None and whole(folder, self._opened()) is not None

    @property
    def window(self) -> Window | None:
        """Which values become black and white; "auto" is found out when it is first needed."""
        if self._window == "auto":
            self._window = seen_window(self._opened())
        return self._window

    def examine(self, progress: Progress | None = None, most: float = math.inf) -> Examined | None:
        """``cache.examine`` what is prepared; None if nothing is, or the images are on the Hub."""
        folder = self._place()
        return None if folder is None else examine(folder, self._opened(), progress, most)

    def _place(self) -> Path | None:
        """Where the images are kept, if anything is; None on the Hub, for nothing is fetched to find out."""
        if not Path(located(self.path)).is_absolute():
            return None
        return place(self._opened(), self.image_size, self.shape[0], self.cache, self.window)

    @property
    def store(self) -> Store:
        """The prepared images."""
        if self._store is None and self._folder is not None:
            self._store = whole(self._folder)
        if self._store is None:
            self.prepare()
        assert self._store is not None
        return self._store

    @property
    def fingerprint(self) -> str:
        """Of the names, sizes, labels and scalars of all usable images: the same as long as they are the same."""
        digest = self.store.fingerprint
        if self._known:
            parts = (f"{name}{values.tobytes().hex()}" for name, values in sorted(self._known.items()))
            digest = hashlib.sha256("\n".join((digest, *parts)).encode()).hexdigest()
        return f"{len(self):,} images, {digest[:16]}"

    def content(self) -> str:
        """The fingerprint, and a digest of all pixels as they were decoded."""
        return f"{self.fingerprint}, {self.store.content[:16]}"

    @property
    def rejected(self) -> Sequence[Rejected]:
        """The files that cannot be used."""
        return self.store.rejected

    def __len__(self) -> int:
        return self.store.count

    def name(self, index: int) -> str:
        """What image ``index`` is called in its folder or table."""
        return str(self.store.names[index])

    def indices(self, seed: int, position: int, size: int) -> Int[Tensor, " size"]:
        """The numbers of the images in ``batch`` of the same arguments."""
        return torch.from_numpy(self._places(seed, position, size)[1])

    def _places(self, seed: int, position: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in an epoch before it is shuffled, and the images that lie there: the same, unless some repeat."""
        places = sample_order(seed, position, size, self._epoch).numpy()
        return places, places if self._numbers is None else self._numbers[places]

    @property
    def _epoch(self) -> int:
        """How many images an epoch has, repeated ones again each time."""
        if not self.repeats:
            return len(self)
        if self._numbers is None:
            times = np.array([self.repeats.get(name, 1) for name in self.classes or ()])
            self._numbers = np.repeat(np.arange(len(self)), times[self.store.labels])
        return len(self._numbers)

    def batch(self, seed: int, position: int, size: int) -> Batch:
        places, chosen = self._places(seed, position, size)
        epoch = (position + np.arange(size)) // self._epoch
        mirrored = coins(seed, epoch, places) if self.flip else None
        labels = self.store.labels
        cond = {} if labels is None or self.classes is None else {"label": torch.from_numpy(labels[chosen])}
        cond |= {name: torch.from_numpy(values[chosen]) for name, values in self._known.items()}
        return Batch(self.images(chosen, mirrored), cond)

    def images(
        self, indices: Sequence[int] | np.ndarray, mirrored: np.ndarray | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Images by number, in [−1, 1]; those for which ``mirrored`` is true are turned left to right."""
        numbers = np.asarray(indices, dtype=np.int64)
        pixels = self.store.pixels
        # Fancy indices copy: torch is never given memory that cannot be written to.
        rows = np.stack([self._decode(int(i)) for i in numbers]) if pixels is None else np.asarray(pixels[numbers])
        if mirrored is not None:
            rows[mirrored] = rows[mirrored, :, :, ::-1]
        return torch.from_numpy(rows).float().div_(127.5).sub_(1)

    def _opened(self) -> Source:
        if self._source is None:
            if Path(self.path).is_absolute() and not Path(self.path).exists():
                raise InputError(
                    f"the images are not at {self.path} any more. Put them back, or give their new place with "
                    f"ditlab train --resume RUN --data.path PATH"
                )
            self._source = open_source(self.path, self.column)
        return self._source

    def _decode(self, index: int) -> np.ndarray:
        try:
            body = self._opened().read(int(self.store.kept[index]))
            return decode(body, self.image_size, self.shape[0], self.window).pixels
        except Unusable as error:
            raise InputError(
                f"{self.path} has changed: {readable(self.name(index))} could be used before, but now: {error}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped into memory: a worker process maps it for itself, and needs no list of files then."""
        if self._store is None:
            return self.__dict__
        source = self._source if self._store.pixels is None else None
        return {**self.__dict__, "_store": None, "_folder": self._store.folder, "_source": source}


def _difference(source: Source, classes: tuple[str, ...]) -> str:
    found = source.classes or ()
    new, gone = (sorted(set(a) - set(b))[:NAMED] for a, b in ((found, classes), (classes, found)))
    parts = [f"{', '.join(names)} {what}" for names, what in ((new, "new"), (gone, "gone")) if names]
    return "; ".join(parts) or "in another order"
