"""Prepared images: every file decoded once, the bad ones known, the pixels kept in a cache folder. Imports no torch.

A prepared folder is written under a temporary name, flushed and renamed, so under its own name it is whole. Its name
is a digest of all that decides its content, so what changed is prepared anew. Who prepares holds a lock; whoever
wants the same images meanwhile waits for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock

from ditlab import disk
from ditlab.data.images.reading import decode_all
from ditlab.data.images.source import Progress, Rejected, Source

VERSION = 1  # of the layout and of how files are decoded
LARGEST = 2**34  # bytes of pixels that are kept without being asked for
SPARED = 2**30  # bytes of the disk that are left free
HEADER = 128  # bytes of an .npy file's header

Cache = Literal["auto", "on", "off"]


class Strings(Sequence[str]):
    """A list of strings that stays on the disk until one is asked for: their bytes, and where each ends."""

    def __init__(self, path: Path) -> None:
        self._ends = np.load(path.with_suffix(".ends.npy"), mmap_mode="r")
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r") if self._ends[-1] else np.empty(0, np.uint8)
        if len(self._bytes) != self._ends[-1]:
            raise ValueError(f"{path} is cut short")

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
        folder: that it is read from.
        count: of usable images.
        shape: (C, H, W) of each.
        pixels: (count, C, H, W) uint8, memory-mapped; None where they are decoded as needed.
        kept: the number of each usable image in the source.
        labels: (count,) int64, or None.
        names: of the usable images.
        captions: of the usable images, "" where there is none; None where no image has one.
        rejected: the files that cannot be used.
        fingerprint: of names, sizes and labels of the usable images, whatever the time they were written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text())
        self.count: int = index["count"]
        self.shape: tuple[int, int, int] = tuple(index["shape"])
        self.fingerprint: str = index["fingerprint"]
        self.kept = np.load(folder / "kept.npy")
        self.labels = np.load(folder / "labels.npy") if index["labels"] else None
        self.names = Strings(folder / "names")
        self.captions = Strings(folder / "captions") if index["captions"] else None
        self.pixels = None
        if index["pixels"]:
            self.pixels = np.load(folder / "pixels.npy", mmap_mode="r" if self.count else None)
        lines = (folder / "rejected.jsonl").read_text().splitlines()
        self.rejected = [Rejected(**json.loads(line)) for line in lines]


def prepare(
    source: Source, size: tuple[int, int], channels: int, cache: Cache = "auto", progress: Progress | None = None
) -> Store:
    """Images of a source, brought to one size: from the cache, or decoded into it.

    Args:
        source: where they come from.
        size: height and width.
        channels: 1 or 3.
        cache: whether to keep their pixels; "auto" does so up to 16 GiB, where the disk has room for them.
        progress: told how many of how many are done.

    Raises:
        InputError: the cache is no folder, or may not be written to.
    """
    root = disk.cache_for("images")
    folder, keep = _folder(root, source, size, channels, cache)
    if (ready := whole(folder)) is not None:
        return ready
    with disk.kept_in(root), FileLock(root / f"{folder.name}.lock"):
        if (ready := whole(folder)) is None:  # else another process has just prepared them
            for dead in (folder, *root.glob(f".{folder.name}.*")):
                disk.discard(dead)
            disk.write_folder(folder, lambda made: _fill(made, source, size, channels, keep, progress))
            ready = Store(folder)
    return ready


def prepared(source: Source, size: tuple[int, int], channels: int, cache: Cache = "auto") -> Store | None:
    """What ``prepare`` would find of the same arguments; None if it would have to decode. Nothing is written."""
    root = disk.cache_folder() / "images"
    return whole(_folder(root, source, size, channels, cache)[0]) if root.is_dir() else None


def _folder(root: Path, source: Source, size: tuple[int, int], channels: int, cache: Cache) -> tuple[Path, bool]:
    """Where a source is prepared, and whether its pixels are kept there."""
    needed = len(source.names) * channels * size[0] * size[1]
    folders = {keep: root / _key(source, size, channels, keep) for keep in (True, False)}
    fits = needed <= LARGEST and needed + SPARED <= shutil.disk_usage(root).free
    keep = cache == "on" or (cache == "auto" and (fits or folders[True].is_dir()))
    return folders[keep], keep


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write one JSON object a line, ``{"path": ..., "reason": ...}``, whole or not at all."""
    text = "".join(json.dumps(entry._asdict()) + "\n" for entry in rejected)
    disk.write_atomically(path, lambda file: file.write_text(text))


def _key(source: Source, size: tuple[int, int], channels: int, keep: bool) -> str:
    """A name for all that decides what is prepared."""
    digest = hashlib.sha256(repr((VERSION, source.location, size, channels, keep, source.stamp)).encode())
    for part in (source.names, source.sizes, source.labels, sorted(source.captions.items()), source.rejected):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:32]


def whole(folder: Path) -> Store | None:
    """What was prepared there; None if nothing was, or if it is damaged."""
    try:
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fill(
    folder: Path, source: Source, size: tuple[int, int], channels: int, keep: bool, progress: Progress | None
) -> None:
    """Write the files of a store."""
    shape = (channels, *size)
    kept, rejected = [], list(source.rejected)
    with (folder / "pixels.npy").open("wb") as stream:
        stream.write(bytes(HEADER))
        for i, picture in enumerate(decode_all(source, size, channels, progress)):
            if isinstance(picture, Rejected):
                rejected.append(picture)
                continue
            kept.append(i)
            if keep:
                stream.write(picture.pixels.tobytes())
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
        "fingerprint": _fingerprint(source, kept),
        "location": source.location,
    }
    (folder / "index.json").write_text(json.dumps(index))


def _fingerprint(source: Source, kept: Sequence[int]) -> str:
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for i in kept:
        label = None if source.labels is None else source.labels[i]
        digest.update(json.dumps([source.names[i], source.sizes[i], label]).encode())
    return digest.hexdigest()


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of an .npy file in the place that was left for it."""
    stream.seek(0)
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if stream.tell() != HEADER:
        raise ValueError(f"the header of an array of shape {shape} has {stream.tell()} bytes, not {HEADER}")
