"""Where images come from: names, labels, captions and bytes, whatever holds them. Imports neither torch nor numpy."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".avif",
}  # fmt: skip
PHONES = {".heic", ".heif"}  # which pillow-heif reads
if find_spec("pillow_heif"):
    SUFFIXES |= PHONES
MAX_BYTES = 2**28  # of one file

Progress = Callable[[int, int], None]  # is told how many of how many are done

FLAGS = ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")  # of those the system has: a named pipe would block

SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of this process or machine; the file is not to blame


class Unusable(ValueError):
    """An image cannot be trained on. The text is the reason; what stands before its first colon names the kind."""


class Rejected(NamedTuple):
    """A file that cannot be used, under its name in the source, and why."""

    path: str
    reason: str


@runtime_checkable
class Source(Protocol):
    """Images in a fixed order, each with a name, a label and a caption where there are any.

    ``names`` are relative to the source, ``/`` between their parts; bytes that are no UTF-8 are kept as Python keeps
    them in file names. ``sizes`` are in bytes. ``stamp`` changes when an image may have changed though its size has
    not. ``rejected`` is what looked like an image and cannot even be read as a file; ``other`` counts what looked like
    none, by suffix; ``notes`` are for the person who trains.
    """

    location: str
    names: list[str]
    sizes: list[int]
    classes: tuple[str, ...] | None
    labels: list[int] | None
    captions: dict[int, str]
    stamp: str
    rejected: list[Rejected]
    other: Counter[str]
    notes: list[str]

    def column(self, name: str) -> list[Any]:
        """What a column of the images' table or metadata holds for each image, None where it is empty.

        Without such a column, an ``InputError`` lists those that exist.
        """
        ...

    def read(self, index: int) -> bytes:
        """The bytes of an image file; ``Unusable`` if they cannot be read."""
        ...


def too_large(size: int) -> Unusable:
    """Why a file of so many bytes is not read."""
    return Unusable(f"too large: {size:,} bytes, and {MAX_BYTES:,} are the limit")


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file; ``Unusable`` for anything else, which is never waited for, or over 2²⁸ bytes."""
    try:
        descriptor = os.open(path, sum((getattr(os, flag, 0) for flag in FLAGS), os.O_RDONLY))
        with os.fdopen(descriptor, "rb") as stream:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise Unusable(f"no file: {kind_of(info.st_mode)}")
            if info.st_size > MAX_BYTES:
                raise too_large(info.st_size)
            return stream.read(MAX_BYTES)
    except OSError as error:
        raise Unusable(why_unreadable(error)) from None


def kind_of(mode: int) -> str:
    """What an entry of a folder is, in words."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    kinds |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


def why_unreadable(error: OSError) -> str:
    """Why an entry of a folder could not be opened; raises the error if the machine ran out of something instead."""
    if error.errno in SHORTAGES:
        raise error
    kinds = {errno.ELOOP: "a link that leads to itself", errno.EISDIR: "a folder", errno.ENXIO: "a socket"}
    return f"no file: {kinds[error.errno]}" if error.errno in kinds else f"cannot be read: {error.strerror}"


HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[0-9a-f]{40})?")  # no ./name or ../name; perhaps of one commit


def pinned(name: str, commit: str | None) -> str:
    """A name on the Hub as it is recorded, ``owner/name@commit``: the same bytes whenever it is fetched."""
    return f"{name}@{commit}" if commit and "@" not in name and HUB_NAME.fullmatch(f"{name}@{commit}") else name
