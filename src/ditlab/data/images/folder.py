"""A folder of images, as people have them: any depth, any names, and things in it that are no images.

The label of an image is the folder that holds it, named by its path from the root: ``cats/a.png`` is in class ``cats``,
``birds/crow/b.png`` in ``birds/crow``, and an image that lies in the root beside such folders in class ``.``. Classes
are numbered in the order of their names. Where one folder holds all images there are no labels.

Where metadata.jsonl or metadata.csv give every image a label, these are the classes instead.

A folder is looked into once, however many links lead to it, so links that lead in circles end. Hidden files, what
systems put beside people's files, and files whose suffix is no image's are not read; they are counted. Arrays (.npy)
are images where there are no others.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import posixpath
import stat
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError
from ditlab.data.images.labels import Labels, by_folder, numbered, read_metadata, readable
from ditlab.data.images.source import PHONES, SUFFIXES, Rejected, Unusable, kind_of, read_file, why_unreadable

TABLES = {".parquet": "parquet", ".tar": "tar"}  # suffix: what it is
METADATA = ("metadata.jsonl", "metadata.csv")
ARRAYS = ".npy"
JUNK = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}  # of systems, not of people


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
        self._metadata: list[str] = []  # files of it
        self._arrays: list[tuple[str, int, int]] = []
        self._like_images: list[str] = []  # folders
        found = self._walk()
        if not found and not self.rejected:  # arrays are images where there are no others
            found = self._arrays
            del self.other[ARRAYS]
        found.sort(key=lambda entry: os.fsencode(entry[0]))
        self.rejected.sort(key=lambda entry: os.fsencode(entry.path))
        self.tables.sort(key=os.fsencode)
        self.names = [name for name, _, _ in found]
        self.sizes = [size for _, size, _ in found]
        self.stamp = hashlib.sha256(array("q", [changed for _, _, changed in found]).tobytes()).hexdigest()
        self.captions, labels = self._read_metadata()
        self.classes, self.labels = self._label(labels)
        self._note_oddities()

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
            elif suffix_of(name) in SUFFIXES and not again:
                self._like_images.append(name)
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
        if entry.name.startswith(".") or entry.name in JUNK:
            self.other["hidden" if entry.name.startswith(".") else entry.name] += 1
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
            if entry.name in METADATA:
                self._metadata.append(name)
            else:
                if suffix == ARRAYS and stat.S_ISREG(info.st_mode):
                    self._arrays.append((name, info.st_size, info.st_mtime_ns))
                if suffix in TABLES and stat.S_ISREG(info.st_mode):
                    self.tables.append(name)
                self.other[suffix] += 1
        elif stat.S_ISREG(info.st_mode):
            found.append((name, info.st_size, info.st_mtime_ns))
        else:
            self.rejected.append(Rejected(name, f"no file: {kind_of(info.st_mode)}"))
        return None

    def _label(self, given: dict[int, int | str]) -> Labels:
        """The classes' names, and the label of each image: given if each has one, else by folder."""
        told = " and ".join(sorted(set(map(posixpath.basename, self._metadata))))
        if given and len(given) == len(self.names):
            self.notes.append(f"labels are those of {told}")
            return numbered([given[i] for i in range(len(given))])
        if given:
            self.notes.append(
                f"{len(given):,} of {len(self.names):,} images have a label in {told}: these are not used"
            )
        return by_folder(self.names, self.notes)

    def _read_metadata(self) -> tuple[dict[int, str], dict[int, int | str]]:
        """Captions and labels, by the numbers of the images, in the files beside them."""
        captions: dict[int, str] = {}
        labels: dict[int, int | str] = {}
        for at, row in self._rows(self.notes):
            if isinstance(text := row.get("text", row.get("caption")), str):
                captions[at] = text.encode("utf-8", "replace").decode()  # JSON can hold half characters
            if row.get("label", "") != "":
                labels[at] = row["label"]
        return captions, labels

    def column(self, name: str) -> list[Any]:
        values: list[Any] = [None] * len(self.names)
        known: set[str] = set()
        for at, row in self._rows([]):
            known |= row.keys()
            values[at] = row.get(name, values[at])
        if name not in known:
            there = f"only {', '.join(sorted(known))}" if known else "and no metadata.jsonl or metadata.csv for it"
            raise InputError(f"{readable(self.location)} has no column {name}, {there}")
        return values

    def _rows(self, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The number of an image and what is said of it, for each line of metadata; others are noted."""
        index = {name: i for i, name in enumerate(self.names)} if self._metadata else {}
        for table in sorted(self._metadata):
            lines, unknown = 0, 0
            try:
                for row in read_metadata(table, read_file(self._path(table))):
                    lines += 1
                    name = row.get("file_name", "")
                    at = index.get(posixpath.normpath(posixpath.join(posixpath.dirname(table), name)))
                    if at is None or all(row[column] is None for column in row.keys() - {"file_name"}):
                        unknown += 1
                    else:
                        yield at, row
            except Unusable as error:
                notes.append(f"{table}: {error}")
            if unknown:
                notes.append(f"{table}: {unknown:,} of {lines:,} lines tell nothing of an image here")

    def _note_oddities(self) -> None:
        if self._like_images:
            count, first = len(self._like_images), min(self._like_images, key=os.fsencode)
            called = "folder is called like an image" if count == 1 else "folders are called like images"
            self.notes.append(f"{count:,} {called}, such as {readable(first)}: the images in it are read as any")
        if phones := sum(self.other[suffix] for suffix in PHONES):
            files, them = ("file is", "it") if phones == 1 else ("files are", "them")
            self.notes.append(f"{phones:,} HEIC {files} left out: pip install 'ditlab[heic]' to read {them}")


def suffix_of(name: str) -> str:
    """The suffix of a file's name, with its dot and in small letters."""
    return posixpath.splitext(name)[1].lower()
