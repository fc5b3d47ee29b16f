"""Numbers, tables, code and options on the pages that come from other files; only this script writes them there.

    python tools/quotes.py            # rewrite them (make quotes)
    python tools/quotes.py --check    # print where a page and its sources differ, change nothing

``docs/quotes.toml`` lists them by page and heading, so that the pages themselves hold no markup. An entry is one of

    ["text", FILE, PLACE, "it takes {seconds:.1f} s on"]    numbers inside a sentence
    [COLUMNS, FILE, PLACE]                                  a table, with the "heading=template" of [columns]
    ["source", FILE, "Class.method"]                        that definition as a block of Python
    ["options", "module:Section"]                           the options of a section of the configuration

and ``[pictures]`` gives the original of each copied picture. PLACE is a JSON pointer (RFC 6901): keys and positions
after slashes, ``~1`` for a slash in a key. In a list, ``key=value`` is the only entry with that value, and
``key=value,other=value`` the only one with both. A table has a line for each entry at PLACE.

In ``{place:format}`` the place is a pointer from there on, ``@`` the entry's key or position, ``.`` the entry itself.
The format is Python's, with a space before a per cent sign; a factor may follow a star (``.1f*1000`` writes seconds as
milliseconds). In a sentence there must be words on both sides of a number, and a line may break at any space.

A sentence must occur once under its heading. A table is found by its first line, code by the name it defines; entries
under one heading are in the order of the page.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = "docs/quotes.toml"
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class QuoteError(ValueError):
    """An entry of the list that fits no value, or no place on its page."""


class Quote(NamedTuple):
    """Where something stands on a page (start and end), and what belongs there."""

    kind: str
    start: int
    end: int
    text: str


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and everything below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


@cache
def _read(path: Path) -> Any:
    try:
        return tomllib.loads(path.read_text()) if path.suffix == ".toml" else json.loads(path.read_text())
    except FileNotFoundError:
        raise QuoteError(f"{path} does not exist") from None
    except ValueError as error:
        raise QuoteError(f"cannot read {path}: {error}") from None


def _entry(values: list[Any], part: str) -> Any:
    """The one entry of a list at a position, or with the given values."""
    if "=" not in part:
        return values[int(part)]
    wanted = [pair.split("=", 1) for pair in part.split(",")]
    found = [v for v in values if all(key in v and text(v[key]) == word for key, word in wanted)]
    if len(found) != 1:
        raise KeyError(part)
    return found[0]


def look_up(value: Any, pointer: str) -> Any:
    """The value at a JSON pointer, whose parts in a list may be ``key=value``.

    Raises:
        QuoteError: there is none.
    """
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.strip("/").split("/") if part]
    for part in parts:
        try:
            value = _entry(value, part) if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            has = ", ".join(map(str, value)) if isinstance(value, dict) else f"{type(value).__name__} {value!r}"
            raise QuoteError(f"{pointer}: no {part!r} in {has[:200]}") from None
    return value


def text(value: Any, form: str = "") -> str:
    """A value as the page has it: formatted, with a space before a per cent sign.

    Raises:
        QuoteError: the format does not fit the value.
    """
    form, star, factor = form.partition("*")
    if isinstance(value, dict | list):
        raise QuoteError(f"expected a single value, not a {type(value).__name__}")
    try:
        written = format(value * float(factor) if star else value, form)
    except (TypeError, ValueError) as error:
        raise QuoteError(f"{value!r} as {form!r}: {error}") from None
    written = written.replace("-", "−") if isinstance(value, int | float) else written
    return written[:-1] + " %" if form.endswith("%") else written


def _filled(template: str, key: str, entry: Any) -> str:
    """The template with each field's value in its place."""

    def field(found: re.Match[str]) -> str:
        place, form = found[1], found[2] or ""
        return key if place == "@" else text(look_up(entry, "" if place == "." else place), form)

    return FIELD.sub(field, template)


def _table(entries: Any, columns: list[str]) -> str:
    if not isinstance(entries, dict | list):
        raise QuoteError("a table is made of a list or an object")
    heads, _, templates = zip(*(column.partition("=") for column in columns), strict=True)
    pairs = entries.items() if isinstance(entries, dict) else enumerate(entries)
    rows = [heads, *([_filled(cell, str(key), entry) for cell in templates] for key, entry in pairs)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:], ""])


def _sentence(page: str, start: int, end: int, value: Any, template: str) -> Iterator[Quote]:
    """Each number of a sentence between start and end."""
    words = [re.sub(r"(\\ |\\\n|\s)+", r"\\s+", re.escape(part)) for part in FIELD.split(template)[::3]]
    found = list(re.compile(r"([^\n]+?)".join(words) + r"(?!\d)").finditer(page, start, end))
    if len(found) != 1 or not words[0] or not words[-1]:
        raise QuoteError(f"{template!r} occurs {len(found)} times: it must occur once, with words around its numbers")
    for i, field in enumerate(FIELD.finditer(template), 1):
        yield Quote("text", *found[0].span(i), _filled(field[0], "", value))


def _block(kind: str, words: list[str], root: Path) -> tuple[str, str]:
    """What belongs on the page, and a regular expression that finds what stands there."""
    from tools.listings import options, source

    if kind == "source":
        try:
            name = words[1].rpartition(".")[2]
            return source(root / words[0], words[1]), rf"^```python\n(?:@.*\n)*(?:def|class) {name}\b(?:.*\n)*?```\n"
        except (LookupError, OSError) as error:
            raise QuoteError(str(error)) from None
    if kind == "options":
        try:
            made = options(*words)
        except LookupError as error:
            raise QuoteError(str(error)) from None
    else:
        made = _table(look_up(_read(root / words[0]), words[1]), look_up(_read(root / LIST)["columns"], kind))
    return made, "^" + re.escape(made.split("\n")[0]) + r"\n(?:\|.*\n)*"


def _sections(page: str) -> dict[str, tuple[int, int]]:
    """Where the text under each heading begins and ends."""
    found = list(HEADING.finditer(FENCE.sub(lambda block: " " * len(block[0]), page)))
    ends = [*(heading.start() for heading in found[1:]), len(page)]
    return {heading[1]: (heading.end(), end) for heading, end in zip(found, ends, strict=True)}


def quotes(name: str, page: str, root: Path = ROOT) -> Iterator[Quote]:
    """What the list names on a page.

    Raises:
        QuoteError: an entry fits no value, or no place on the page.
    """
    sections = _sections(page)
    for heading, entries in _read(root / LIST).get(name, {}).items():
        if heading not in sections:
            raise QuoteError(f"{name} has no heading {heading!r}")
        start, end = sections[heading]
        at = start
        for kind, *words in entries:
            if kind == "text":
                yield from _sentence(page, start, end, look_up(_read(root / words[0]), words[1]), words[2])
                continue
            made, pattern = _block(kind, words, root)
            found = re.compile(pattern, re.MULTILINE).search(page, at, end)
            if not found:
                raise QuoteError(f"under {heading!r} there is no place for {kind} {' '.join(words)}: {pattern}")
            at = found.end()
            yield Quote(kind, *found.span(), made)


def rewrite(name: str, root: Path = ROOT) -> tuple[str, list[str]]:
    """The page with every quote as its source has it, and one line for each that differed."""
    page, differences = (root / name).read_text(), []
    for _, start, end, now in sorted(quotes(name, page, root), key=lambda quote: -quote.start):
        if (was := page[start:end]) != now:
            differences.append(f"the page has {shorten(repr(was), 150)}, its source {shorten(repr(now), 150)}")
            page = page[:start] + now + page[end:]
    return page, differences


def different_pictures(root: Path = ROOT) -> list[tuple[Path, Path]]:
    """Original and copy of each listed picture whose copy is not the original."""
    pairs = [(root / original, root / copy) for copy, original in _read(root / LIST).get("pictures", {}).items()]
    return [(a, b) for a, b in pairs if not b.exists() or a.read_bytes() != b.read_bytes()]


def main(argv: list[str]) -> int:
    """Rewrite or check all pages; the status is 1 if a check found a difference, 2 if an entry fits nothing."""
    check, status = "--check" in argv, 0
    for path in pages():
        name = str(path.relative_to(ROOT))
        try:
            page, differences = rewrite(name)
        except QuoteError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 2
            continue
        for line in differences:
            print(f"{name}: {line}")
        if differences and not check:
            path.write_text(page)
        status = max(status, int(check and bool(differences)))
    for original, copy in different_pictures():
        print(f"{copy.relative_to(ROOT)} is not {original.relative_to(ROOT)}")
        status = max(status, int(check))
        if not check:
            shutil.copyfile(original, copy)
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
