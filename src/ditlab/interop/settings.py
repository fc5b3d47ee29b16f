"""Values in the JSON files of others, each looked at before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ditlab.errors import InputError


def shown(value: object) -> str:
    """A value as one would write it, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def class_name(given: Mapping[str, Any], file: Path) -> str:
    """What a configuration says that it describes, cut after 60 characters.

    Raises:
        InputError: it does not say.
    """
    if "_class_name" not in given:
        raise InputError(f"{file} has no _class_name, which says what it describes")
    return str(given["_class_name"])[:60]


def number(given: Mapping[str, Any], name: str, file: Path) -> float:
    """A finite number.

    Raises:
        InputError: something else.
    """
    value = given[name]
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise InputError(f"{file}: {name}={shown(value)} is no number")


def whole(given: Mapping[str, Any], name: str, file: Path, low: int, high: int) -> int:
    """A whole number between two, both included.

    Raises:
        InputError: something else.
    """
    value = given[name]
    if type(value) is int and low <= value <= high:
        return value
    raise InputError(f"{file}: {name}={shown(value)} is not between {low} and {high}")


def choice(given: Mapping[str, Any], name: str, file: Path, known: Iterable[str]) -> str:
    """One of the names that are known.

    Raises:
        InputError: something else.
    """
    value, names = given[name], list(known)
    if isinstance(value, str) and value in names:
        return value
    raise InputError(f"{file}: {name}={shown(value)} is none of {', '.join(names)}")
