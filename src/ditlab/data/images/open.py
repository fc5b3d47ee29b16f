"""Find out what a path names, and open it. Imports neither torch nor numpy."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ditlab.core.errors import InputError
from ditlab.data.images.folder import TABLES, Folder, suffix_of
from ditlab.data.images.labels import readable
from ditlab.data.images.source import HUB_NAME, SUFFIXES, Source

TRAIN = {"train", "training"}
SPLITS = TRAIN | {"test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev"}


def located(path: str) -> str:
    """The path in full, or a name on the Hub as it is; ``InputError`` for anything else."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path drops a trailing "/." and knows no Hub
    if os.path.lexists(expanded):
        return os.path.abspath(expanded)  # noqa: PTH100 - Path.resolve would follow links
    if HUB_NAME.fullmatch(path):
        return path
    raise InputError(f"{path}: there is no such folder or file (a data set on the Hub is named owner/name)")


def open_source(path: str, column: str | None = None) -> Source:
    """The images that a path names: a folder of images, parquet or tar files, or a data set on the Hub.

    ``column`` is that of the images in a table, or their suffix in a tar; None is found out. An ``InputError`` says
    that there are none, or that what reads them is not installed.
    """
    location = located(path)
    if not Path(location).is_absolute():
        return _table(location, "hub", (), column)
    if not Path(location).is_dir():
        if suffix_of(location) not in TABLES:
            raise InputError(f"{path} is a file: name a folder of images, a .parquet or a .tar")
        return _table(location, TABLES[suffix_of(location)], [location], column)
    folder = Folder(location)
    if folder.names or folder.rejected:
        if column is not None:
            folder.notes.append(f"--data.image-column {column} is for tables and tars: a folder's files have none")
        return folder
    for suffix, kind in TABLES.items():
        if names := [name for name in folder.tables if suffix_of(name) == suffix]:
            used = _of_training(names)
            table = _table(location, kind, [f"{location}/{name}" for name in used], column)
            if len(used) < len(names):
                table.notes.append(f"{len(used):,} of {len(names):,} files are used: those whose names say train")
            table.other.update({other: count for other, count in folder.other.items() if other != suffix})
            return table
    instead = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in folder.other.most_common(3))
    raise InputError(
        f"there are no images in {readable(location)}"
        + (f", but other files: {instead}" if instead else "")
        + f"; images end in {', '.join(sorted(SUFFIXES - {'.dib', '.jfif', '.jpe'}))}"
    )


def _of_training(names: Sequence[str]) -> list[str]:
    """The files of the split "train", where their names or those of their folders tell splits apart; else all."""
    splits = [SPLITS.intersection(re.split(r"[^a-z]+", name.lower())) for name in names]
    train = [name for name, split in zip(names, splits, strict=True) if split and split <= TRAIN]
    return train if train and any(split - TRAIN for split in splits) else list(names)


def _table(location: str, kind: str, files: Sequence[str], column: str | None) -> Source:
    if kind == "tar":
        from ditlab.data.images.archive import Archive

        return Archive(location, files, column)
    from ditlab.data.images.arrow import Table

    return Table(location, kind, files, column)
