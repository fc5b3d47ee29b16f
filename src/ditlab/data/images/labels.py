"""What images are of: classes from words, numbers or the folders they lie in. Imports neither torch nor numpy."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from ditlab.data.images.source import Unusable

LABELS = ("label", "labels", "cls", "class", "fine_label")  # what a column, or a file's suffix, may be called
CAPTIONS = ("text", "caption", "txt")
SPLITS = {"train", "test", "val", "valid", "validation"}

Labels = tuple[tuple[str, ...] | None, list[int] | None]  # the classes' names, and the label of each image


def numbered(values: Sequence[int | str]) -> Labels:
    """Classes in the order of their numbers, or of their words as bytes; none where all values are the same."""
    if all(isinstance(value, int) or value.strip().isdecimal() for value in values):
        names = [str(int(value)) for value in values]
        classes = sorted(set(names), key=int)
    else:
        names = [str(value) for value in values]
        classes = sorted(set(names), key=os.fsencode)
    return _labelled(classes, names)


def by_folder(names: Sequence[str], notes: list[str]) -> Labels:
    """A class for each folder that holds images, in the order of their names; none where one holds all."""
    folders = [posixpath.dirname(name) or "." for name in names]
    classes = sorted(set(folders), key=os.fsencode)
    if "." in classes and len(classes) > 1:
        inside = folders.count(".")
        some = "1 image lies" if inside == 1 else f"{inside:,} images lie"
        notes.append(f"{some} beside the folders of the classes, in a class '.'")
    if splits := sorted(SPLITS & {name.split("/")[0] for name in classes}):
        notes.append(f"{' and '.join(splits)} became classes or parts of them: name one to use it alone")
    return _labelled(classes, folders)


def _labelled(classes: Sequence[str], names: Sequence[str]) -> Labels:
    """The number that each name has among the classes; None where there is one class."""
    if len(classes) < 2:
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return tuple(readable(name) for name in classes), [number[name] for name in names]


def read_metadata(name: str, body: bytes) -> Iterator[tuple[str, str | None, int | str | None]]:
    """What each line of a metadata.jsonl or metadata.csv says: the image's name, its caption and its label.

    Lines that are none give an empty name.

    Raises:
        Unusable: the rest of a .csv cannot be read.
    """
    if name.endswith(".csv"):
        rows = csv.DictReader(io.StringIO(body.decode("utf-8-sig", "replace"), newline=""))
        try:
            for row in rows:
                label = (row.get("label") or "").strip()
                yield row.get("file_name") or "", row.get("text") or row.get("caption") or None, label or None
        except csv.Error as error:
            raise Unusable(f"line {rows.line_num} cannot be read: {error}") from None
        return
    for line in filter(None, body.splitlines()):
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            yield "", None, None
            continue
        text, label = entry.get("text", entry.get("caption")), entry.get("label")
        yield (
            entry["file_name"],
            text.encode("utf-8", "replace").decode()
            if isinstance(text, str)
            else None,  # JSON can hold half characters
            label if isinstance(label, int | str) and not isinstance(label, bool) and label != "" else None,
        )


def readable(name: str) -> str:
    r"""A name as text: bytes that are no UTF-8 become ``\xff`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
