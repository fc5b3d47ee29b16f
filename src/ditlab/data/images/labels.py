"""What is known of images: classes from words, numbers or folders, and scalars. Imports neither torch nor numpy."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ditlab.core.errors import InputError
from ditlab.data.images.source import Source, Unusable

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


def read_metadata(name: str, body: bytes) -> Iterator[dict[str, Any]]:
    """What each line of a metadata.jsonl or metadata.csv says, by column; nothing for a line without a file_name.

    ``Unusable`` if the rest of a .csv cannot be read.
    """
    if name.endswith(".csv"):
        rows = csv.DictReader(io.StringIO(body.decode("utf-8-sig", "replace"), newline=""))
        try:
            for row in rows:
                row["label"] = (row.get("label") or "").strip()
                yield {column: cell for column, cell in row.items() if column and cell and row.get("file_name")}
        except csv.Error as error:
            raise Unusable(f"line {rows.line_num} cannot be read: {error}") from None
        return
    for line in filter(None, body.splitlines()):
        entry = json_object(line)
        if isinstance(label := entry.get("label"), bool) or not isinstance(label, int | str):
            entry.pop("label", None)
        yield entry if isinstance(entry.get("file_name"), str) else {}


def json_object(text: str | bytes) -> dict[str, Any]:
    """The object that a JSON text holds; empty where it holds none."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def numbers(source: Source, column: str) -> list[float]:
    """A column of numbers, one for each image of a source; NaN where the row is missing or its cell empty.

    Raises:
        InputError: there is no such column, a cell holds something else, or no image has a number.
    """
    found = []
    for name, value in zip(source.names, source.column(column), strict=True):
        try:
            number = math.nan if value is None or value == "" else float(value)
            if isinstance(value, bool) or math.isinf(number):
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise InputError(
                f"{source.location}: column {column} holds {str(value)[:80]!r} for {readable(name)}, which is not a "
                f"finite number: correct it, or leave the cell empty where the number is unknown"
            ) from None
        found.append(number)
    if all(map(math.isnan, found)):
        raise InputError(f"{source.location}: no image has a number in column {column}: leave it out of --data.scalars")
    return found


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """The mean of the numbers that are known and their standard deviation, 1 where they are all the same."""
    known = [value for value in values if not math.isnan(value)]
    mean = math.fsum(known) / len(known)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known)) or 1.0


def readable(name: str) -> str:
    r"""A name as text: bytes that are no UTF-8 become ``\xff`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
