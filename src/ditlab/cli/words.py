"""Words of a command line that are understood before the options are known. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ditlab.config import KINDS
from ditlab.errors import InputError


def take_part(words: Sequence[str], part: str, usage: str, use: str) -> list[str] | None:
    """What follows the one word that a verb knows; None where the verb's usage was asked for, which is printed.

    Args:
        words: after the verb.
        part: the word.
        usage: what is printed without any, or for help.
        use: what to type, in a message.

    Raises:
        InputError: it is another word.
    """
    if not words or words[0] in ("-h", "--help"):
        print(usage)
        return None
    if words[0] != part:
        raise InputError(f"unknown word {words[0]!r}; use {use}")
    return list(words[1:])


def take_kind(words: list[str], section: str) -> str | None:
    """Take ``--network unet`` out of the words, so that the options of a U-Net can be offered for the rest."""
    flag = f"--{section}"
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name != flag:
            continue
        kind = value or (words[i + 1] if i + 1 < len(words) else "")
        del words[i : i + (1 if value else 2)]
        if kind not in KINDS[section]:
            raise InputError(f"unknown {flag} {kind!r}; choose one of {', '.join(KINDS[section])}")
        return kind
    return None


def take_value(words: list[str], flag: str) -> str | None:
    """Take a flag and its value out of the words; the last one counts."""
    value = None
    while (found := find(words, flag)) is not None:
        first, values = found
        if not values or not values[0]:
            raise InputError(f"{flag} names nothing: give it as {flag} NAME")
        value = values[0]
        del words[first : first + (1 if "=" in words[first] else 2)]
    return value


def spell_out(words: list[str], flag: str) -> None:
    """Give a flag that stands alone its value: ``--compile`` is ``--compile=True``, ``--no-compile`` the contrary."""
    for i, word in enumerate(words):
        alone = i + 1 == len(words) or words[i + 1].startswith("-")
        if word == f"--no-{flag}":
            words[i] = f"--{flag}=False"
        elif word == f"--{flag}" and alone:
            words[i] = f"--{flag}=True"


def find(words: Sequence[str], flag: str) -> tuple[int, list[str]] | None:
    """Where a flag stands, as ``--a b c`` or ``--a=b``, and the words that follow until the next flag."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            rest = list(itertools.takewhile(lambda word: not word.startswith("--"), words[i + 1 :]))
            return i, [value] if equals else rest
    return None
