"""Prepared images: every file decoded once, the bad ones known, the pixels kept in a cache folder. Imports no torch.

A prepared folder is written under a temporary name, flushed and renamed, so under its own name it is whole. Its name
is a digest of all that decides its content, so what changed is prepared anew. Who prepares holds a lock; whoever
wants the same images meanwhile waits for them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from ditlab.core import disk, locks
from ditlab.core.errors import Caution
from ditlab.data.images import checksums
from ditlab.data.images.decode import CONVERTED, Picture
from ditlab.data.images.decode_all import decode_all
from ditlab.data.images.source import Progress, Rejected, Source
from ditlab.data.images.wide import Window

INDEX = "index.json"
VERSION = 2  # of the layout and of how files are decoded: 1 knew no colour profiles
LARGEST = 2**34  # bytes of pixels that are kept without being asked for
SPARED = 2**30  # bytes of the disk that are left free
HEADER = 128  # bytes of an .npy file's header

Cache = Literal["auto", "on", "off"]
Pictures = Iterable[Picture | Rejected]


class Strings(Sequence[str]):
    """A list of strings that stays on the disk until one is asked for: their bytes, and where each ends."""

    def __init__(self, path: Path) -> None:
        self._ends = np.load(path.with_suffix(".ends.npy"), mmap_mode="r")
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r") if self._ends[-1] else np.empty(0, np.uint8)
        if len(self._bytes) != self._ends[-1]:
            raise ValueError(f"{path} is cut short")
        if self._ends[0] != 0 or (np.diff(self._ends) < 0).any():
            raise ValueError(f"{path.name} does not say where its strings end")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())

    @staticmethod
    def write(path: Path, strings: Sequence[str]) -> None:
        """Write strings to ``path``."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
        path.write_bytes(b"".join(encoded))
        np.save(path.with_suffix(".ends.npy"), np.cumsum([0, *map(len, encoded)], dtype=np.int64))


class Store:
    """Prepared images of one size, read from a folder of the cache.

    Attributes:
        count, shape: how many usable images, (C, H, W) each; ``names`` and ``labels`` (count,) are theirs alone.
        pixels: (count, C, H, W) uint8, memory-mapped; None where they are decoded as needed.
        kept: the number of each usable image in the source.
        captions: "" where there is none; None where no image has one.
        fingerprint: of names, sizes and labels of the usable images, whatever the time they were written.
        content: sha256 of the pixels of all usable images, as they were decoded.
        sha256: of each block of each file.

    If it is damaged, or not of ``source``, it raises one of the errors that ``whole`` catches.
    """

    def __init__(self, folder: Path, source: Source | None = None) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX).read_text())
        self.count: int = index["count"]
        self.shape: tuple[int, int, int] = tuple(index["shape"])
        self.fingerprint: str = index["fingerprint"]
        self.content: str = index["content"]
        self.location: str = index["location"]
        self.sha256: dict[str, list[str]] = index["sha256"]
        if not all(isinstance(text, str) for text in (self.fingerprint, self.content, self.location)):
            raise TypeError(f"{INDEX} does not say what was prepared")
        self.kept = np.array(_array(folder / "kept.npy", np.int64, (self.count,)))
        self.labels = np.array(_array(folder / "labels.npy", np.int64, (self.count,))) if index["labels"] else None
        self.names = Strings(folder / "names")
        self.captions = Strings(folder / "captions") if index["captions"] else None
        self.pixels = _array(folder / "pixels.npy", np.uint8, (self.count, *self.shape)) if index["pixels"] else None
        lines = (folder / "rejected.jsonl").read_text().splitlines()
        self.rejected = [Rejected(**json.loads(line)) for line in lines]
        if any(len(strings) != self.count for strings in (self.names, self.captions) if strings is not None):
            raise ValueError("it does not have a name for each image")
        if source is not None:
            self._compare(source)

    def _compare(self, source: Source) -> None:
        """See that the usable images are some of the source's, in its order, and have its labels."""
        ordered = np.concatenate([[-1], self.kept, [len(source.names)]])
        if (np.diff(ordered) < 1).any():
            raise ValueError("the numbers of its images are not those of the source")
        own, wanted = self.labels, None if source.labels is None else np.asarray(source.labels)[self.kept]
        if not (own is wanted if own is None or wanted is None else np.array_equal(own, wanted)):
            raise ValueError("its labels are not those of the source")


def _array(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file, memory-mapped where it holds anything."""
    array: np.ndarray = np.load(file, mmap_mode="r" if 0 not in shape else None)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{file.name} holds {array.shape} of {array.dtype}, not {shape} of {np.dtype(dtype)}")
    return array


def prepare(
    source: Source,
    size: tuple[int, int],
    channels: int,
    cache: Cache = "auto",
    progress: Progress | None = None,
    window: Window | None = None,
) -> Store:
    """Images of a source, brought to one size: from the cache, or decoded into it.

    Args:
        size: height and width.
        channels, window: see ``decode``.
        cache: whether to keep their pixels; "auto" does so up to 16 GiB, where the disk has room for them.

    Raises:
        InputError: the cache is no folder, or may not be written to.
    """
    root = disk.cache_for("images")
    folder, keep = _folder(root, source, size, channels, cache, window)
    if (ready := whole(folder, source)) is not None:
        return ready
    with disk.kept_in(root), locks.alone(root / f"{folder.name}.lock", "the same images are being prepared"):
        if (ready := whole(folder, source)) is None:  # else another process has just prepared them
            if folder.exists():
                warnings.warn(f"what was prepared in {folder} is damaged: it is prepared anew", Caution, 2)
            for dead in (folder, *disk.unfinished(root, re.escape(folder.name))):
                disk.discard(dead)
            pictures, shape = decode_all(source, size, channels, progress, window=window), (channels, *size)
            disk.write_folder(folder, lambda made: _fill(made, source, pictures, shape, keep, window))
            ready = Store(folder)
    return ready


def place(
    source: Source, size: tuple[int, int], channels: int, cache: Cache = "auto", window: Window | None = None
) -> Path | None:
    """Where ``prepare`` keeps what it makes of the same arguments, if anything was kept there; nothing is written."""
    root = disk.cache_folder() / "images"
    if not root.is_dir():
        return None
    folder = _folder(root, source, size, channels, cache, window)[0]
    return folder if folder.is_dir() else None


class Examined(NamedTuple):
    """A prepared folder, its bytes, a line for each damaged file, and why damage could not be told if it could not."""

    folder: Path
    bytes: int
    damaged: list[str]
    unknown: str | None


def examine(
    folder: Path, source: Source | None = None, progress: Progress | None = None, most: float = math.inf
) -> Examined:
    """Read a prepared folder in whole and compare it with its checksums. Nothing is changed.

    ``source`` is whose images it holds. Of more than ``most`` bytes it is not known whether they are damaged.
    """
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    size, store = sum(files.values()), whole(folder, source)
    if store is None:
        return Examined(folder, size, [f"the files in {folder} do not go together, or not with the images"], None)
    if size > most:
        return Examined(folder, size, [], f"{size / 1e9:,.1f} GB were not read: ditlab check does")
    try:
        if store.sha256.keys() != files.keys() - {INDEX}:
            return Examined(folder, size, [f"{folder} does not hold the files that its {INDEX} names"], None)
        return Examined(folder, size, checksums.damaged(folder, store.sha256, progress), None)
    except (OSError, TypeError, AttributeError) as error:
        return Examined(folder, size, [f"{folder} is damaged: {str(error)[:120]}"], None)


def caches_of(location: str) -> list[Path]:
    """The folders that hold prepared images of a source, of any size; damaged ones that do not say so are left out."""
    root = disk.cache_folder() / "images"
    return [folder for folder in sorted(root.glob("[!.]*/")) if _location(folder) == location]


def _location(folder: Path) -> Any:
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        return json.loads((folder / INDEX).read_text())["location"]


def _folder(
    root: Path, source: Source, size: tuple[int, int], channels: int, cache: Cache, window: Window | None
) -> tuple[Path, bool]:
    """Where a source is prepared, and whether its pixels are kept there."""
    needed = len(source.names) * channels * size[0] * size[1]
    folders = {keep: root / _key(source, size, channels, keep, window) for keep in (True, False)}
    fits = needed <= LARGEST and needed + SPARED <= shutil.disk_usage(root).free
    keep = cache == "on" or (cache == "auto" and (fits or folders[True].is_dir()))
    return folders[keep], keep


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write one JSON object a line, ``{"path": ..., "reason": ...}``, whole or not at all."""
    text = "".join(json.dumps(entry._asdict()) + "\n" for entry in rejected)
    disk.write_atomically(path, lambda file: file.write_text(text))


def _key(source: Source, size: tuple[int, int], channels: int, keep: bool, window: Window | None) -> str:
    """A name for all that decides what is prepared."""
    decided = (VERSION, source.location, size, channels, keep, source.stamp, *(window or ()))
    digest = hashlib.sha256(repr(decided).encode())
    for part in (source.names, source.sizes, source.labels, sorted(source.captions.items()), source.rejected):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:32]


def whole(folder: Path, source: Source | None = None) -> Store | None:
    """What was prepared there, of ``source`` if it is given; None if nothing was, or if it is damaged."""
    try:
        return Store(folder, source)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError, RecursionError):
        return None


def _fill(
    folder: Path, source: Source, pictures: Pictures, shape: tuple[int, int, int], keep: bool, window: Window | None
) -> None:
    kept, rejected, converted, content = [], list(source.rejected), set(), hashlib.sha256()
    with (folder / "pixels.npy").open("wb") as stream:
        stream.write(bytes(HEADER))
        for i, picture in enumerate(pictures):
            if isinstance(picture, Rejected):
                rejected.append(picture)
                continue
            kept.append(i)
            pixels = picture.pixels.tobytes()
            content.update(pixels)
            if CONVERTED in picture.header.remarks:
                converted.add(i)
            if keep:
                stream.write(pixels)
        _write_header(stream, (len(kept), *shape))
    if not keep:
        (folder / "pixels.npy").unlink()
    labels = None if source.labels is None else np.array([source.labels[i] for i in kept], dtype=np.int64)
    np.save(folder / "kept.npy", np.array(kept, dtype=np.int64))
    if labels is not None:
        np.save(folder / "labels.npy", labels)
    Strings.write(folder / "names", [source.names[i] for i in kept])
    if source.captions:
        Strings.write(folder / "captions", [source.captions.get(i, "") for i in kept])
    write_rejected(folder / "rejected.jsonl", sorted(rejected, key=lambda entry: os.fsencode(entry.path)))
    index = {
        "count": len(kept),
        "shape": shape,
        "pixels": keep,
        "labels": labels is not None,
        "captions": bool(source.captions),
        "fingerprint": _fingerprint(source, kept, converted, window),
        "content": content.hexdigest(),
        "location": source.location,
        "sha256": {file.name: list(checksums.of_file(file)) for file in sorted(folder.iterdir())},
    }
    (folder / INDEX).write_text(json.dumps(index))


def _fingerprint(source: Source, kept: Sequence[int], converted: set[int], window: Window | None) -> str:
    """What was trained on; a converted image is another one than it was to versions that knew no profiles."""
    digest = hashlib.sha256(json.dumps(source.classes if window is None else [source.classes, window]).encode())
    for i in kept:
        label = None if source.labels is None else source.labels[i]
        digest.update(json.dumps([source.names[i], source.sizes[i], label, *(["sRGB"] * (i in converted))]).encode())
    return digest.hexdigest()


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file in the place that was left for it."""
    stream.seek(0)
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if stream.tell() != HEADER:
        raise ValueError(f"the header of an array of shape {shape} has {stream.tell()} bytes, not {HEADER}")
