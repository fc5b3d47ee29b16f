"""A folder of images, as people have them: any depth, any names, and things in it that are no images.

The label of an image is the folder that holds it, named by its path from the root: ``cats/a.png`` is in class ``cats``,
``birds/crow/b.png`` in ``birds/crow``, and an image that lies in the root beside such folders in class ``.``. Classes
are numbered in the order of their names. Where one folder holds all images there are no labels.

A folder is looked into once, however many links lead to it, so links that lead in circles end. Hidden files and files
whose suffix is no image's are not read; they are counted.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import posixpath
import stat
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from ditlab.data.images.source import Rejected, Unusable, kind_of, read_file, why_unreadable
from ditlab.errors import InputError

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm",
}  # fmt: skip
TABLES = {".parquet": "parquet", ".tar": "webdataset"}  # suffix: how ``datasets`` calls it
CAPTIONS = "metadata.jsonl"
SPLITS = {"train", "test", "val", "valid", "validation"}


class Folder:
    """The images in a folder; see ``Source``.

    Attributes:
        tables: names of files that may hold images in rows; they are not opened.

    Raises:
        InputError: the folder cannot be opened.
    """

    def __init__(self, root: str | Path) -> None:
        self.location = os.path.abspath(root)  # noqa: PTH100 - Path.resolve would follow links
        self.rejected: list[Rejected] = []
        self.other: Counter[str] = Counter()
        self.notes: list[str] = []
        self.tables: list[str] = []
        self._captions: list[str] = []  # files of them
        found = sorted(self._walk(), key=lambda entry: os.fsencode(entry[0]))
        self.rejected.sort(key=lambda entry: os.fsencode(entry.path))
        self.tables.sort(key=os.fsencode)
        self.names = [name for name, _, _ in found]
        self.sizes = [size for _, size, _ in found]
        self.stamp = hashlib.sha256(array("q", [changed for _, _, changed in found]).tobytes()).hexdigest()
        self.classes, self.labels = self._label()
        self.captions = self._read_captions()

    def read(self, index: int) -> bytes:
        return read_file(self._path(self.names[index]))

    def _path(self, name: str) -> str:
        return f"{self.location}/{name}" if name else self.location

    def _walk(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change of every image."""
        found: list[tuple[str, int, int]] = []
        seen: set[tuple[int, int]] = set()
        folders = [""]
        links: list[str] = []  # links last and by name: what they lead to has its own name where it has one
        while folders or links:
            name = folders.pop() if folders else heapq.heappop(links)
            try:
                info = os.stat(self._path(name))  # noqa: PTH116 - names are strings throughout
                again = (info.st_dev, info.st_ino) in seen
                seen.add((info.st_dev, info.st_ino))
                with os.scandir(self._path(name)) as inside:
                    entries = [] if again else list(inside)
            except OSError as error:
                if not name:
                    raise InputError(f"cannot open {self.location}: {error.strerror}") from None
                self.rejected.append(Rejected(name, f"a folder that {why_unreadable(error)}"))
                continue
            if not entries and suffix_of(name) in SUFFIXES:
                self.rejected.append(Rejected(name, "no file: a folder"))
            elif again:
                self.notes.append(f"{name} leads to a folder that is looked into under another name")
            for entry in entries:
                below = self._sort_out(entry, f"{name}/{entry.name}" if name else entry.name, found)
                if below is not None and entry.is_symlink():
                    heapq.heappush(links, below)
                elif below is not None:
                    folders.append(below)
        return found

    def _sort_out(self, entry: os.DirEntry[str], name: str, found: list[tuple[str, int, int]]) -> str | None:
        """Put an entry where it belongs; the name of a folder is returned."""
        suffix = suffix_of(name)
        if entry.name.startswith("."):
            self.other["hidden"] += 1
            return None
        try:
            info = entry.stat()
        except OSError as error:
            reason = why_unreadable(error)
            if suffix in SUFFIXES:
                link = entry.is_symlink() and isinstance(error, FileNotFoundError)
                self.rejected.append(Rejected(name, "no file: a link to nothing" if link else reason))
            else:
                self.other[suffix] += 1
            return None
        if stat.S_ISDIR(info.st_mode):
            return name
        if suffix not in SUFFIXES:
            if entry.name == CAPTIONS:
                self._captions.append(name)
            else:
                if suffix in TABLES and stat.S_ISREG(info.st_mode):
                    self.tables.append(name)
                self.other[suffix] += 1
        elif stat.S_ISREG(info.st_mode):
            found.append((name, info.st_size, info.st_mtime_ns))
        else:
            self.rejected.append(Rejected(name, f"no file: {kind_of(info.st_mode)}"))
        return None

    def _label(self) -> tuple[tuple[str, ...] | None, list[int] | None]:
        """The classes' names, and the label of each image."""
        folders = [posixpath.dirname(name) or "." for name in self.names]
        classes = sorted(set(folders), key=os.fsencode)
        if len(classes) < 2:
            return None, None
        if "." in classes:
            inside = folders.count(".")
            some = "1 image lies" if inside == 1 else f"{inside:,} images lie"
            self.notes.append(f"{some} beside the folders of the classes, in a class '.'")
        if splits := sorted(SPLITS & {name.split("/")[0] for name in classes}):
            self.notes.append(f"{' and '.join(splits)} became classes or parts of them: name one to use it alone")
        number = {name: i for i, name in enumerate(classes)}
        return tuple(readable(name) for name in classes), [number[name] for name in folders]

    def _read_captions(self) -> dict[int, str]:
        """The captions in files of lines ``{"file_name": ..., "text": ...}``, relative to the file's own folder."""
        captions: dict[int, str] = {}
        if not self._captions:
            return captions
        index = {name: i for i, name in enumerate(self.names)}
        for table in sorted(self._captions):
            try:
                lines = read_file(self._path(table)).splitlines()
            except Unusable as error:
                self.notes.append(f"{table}: {error}")
                continue
            unknown = 0
            for line in filter(None, lines):
                name, text = _caption(line)
                at = index.get(posixpath.normpath(posixpath.join(posixpath.dirname(table), name)))
                if at is None or text is None:
                    unknown += 1
                else:
                    captions[at] = text
            if unknown:
                self.notes.append(f"{table}: {unknown:,} of {len(lines):,} lines give no caption to an image here")
        return captions


def suffix_of(name: str) -> str:
    """The suffix of a file's name, with its dot and in small letters."""
    return posixpath.splitext(name)[1].lower()


def readable(name: str) -> str:
    r"""A name as text: bytes that are no UTF-8 become ``\xff`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _caption(line: bytes) -> tuple[str, str | None]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "", None
    if not isinstance(entry, dict):
        return "", None
    name, text = entry.get("file_name"), entry.get("text", entry.get("caption"))
    if not isinstance(name, str) or not isinstance(text, str):
        return "", None
    return name, text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters
