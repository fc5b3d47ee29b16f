"""Numbers in the documentation that come from JSON files, and are written there by this script alone.

    python tools/quotes.py            # rewrite them (make quotes)
    python tools/quotes.py --check    # say where text and JSON differ, change nothing

A quote stands between two comments, which neither GitHub nor the site shows. The first names the file, from the root of
the repository, the place in it, and how it is written; a line must not begin with it:

    It is <!--q benchmarks/results/train_step.json /rows/loop=default/ratio .2f-->1.53<!--/q--> times as fast.

The place is a JSON pointer (RFC 6901): keys and positions after slashes; ``~1`` is a slash in a key. In a list,
``key=value`` is the one entry with that value, and ``key=value,other=value`` the one with both. The format is Python's,
with a space before a per cent sign; without one, text stays as it is and numbers are written in full. A factor may come
after a star (``.1f*1000`` writes seconds as milliseconds). What holds spaces goes in double quotes.

A table has a line for each entry of a list or an object, and columns of "heading=template", where ``{place}`` or
``{place:format}`` is looked up in the entry, ``{@}`` is its key or position, and ``{.:format}`` the entry itself:

    <!--table studies/results/full/NAME.json /kinds "kind={@}" "loss={loss/mean:.3f} ± {loss/sd:.3f}"-->
    <!--/table-->

A picture of a result is copied beside the documentation, to where the page that shows it has it:

    <!--picture studies/results/full/NAME.png-->
    ![what is to be seen](images/study-NAME.png)

Listings of code and tables of options are kept in the same way: see ``listings.py``.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def _between(name: str, inside: str) -> re.Pattern[str]:
    """What stands between two comments: ``inside`` is a quote's place among text, or a block of lines."""
    return re.compile(rf"(?P<open><!--{name} (?P<call>[^\n]*?)-->{inside})(?P<close><!--/{name}-->)", re.DOTALL)


BLOCK = r"\n)(?P<text>.*?"
QUOTE = _between("q", r")(?P<text>[^\n]*?")
TABLE, SOURCE, OPTIONS = _between("table", BLOCK), _between("source", BLOCK), _between("options", BLOCK)
PICTURE = re.compile(r"<!--picture ([^\n]*?)-->(\n!\[[^\]]*\]\(([^)\s]+)\))?")
FIRST = re.compile(r"^<!--q [^\n]*", re.MULTILINE)
MARKER = re.compile(r"<!--\s*/?\s*(?:q|table|source|options)\b")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class QuoteError(ValueError):
    """A quote that names no value: file, place or format are wrong."""


def pages(root: Path = ROOT) -> list[Path]:
    """The files whose numbers are quotes: README.md and everything below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


@cache
def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise QuoteError(f"there is no {path}") from None
    except ValueError as error:
        raise QuoteError(f"{path} is no JSON: {error}") from None


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
        QuoteError: the value cannot be written so.
    """
    form, star, factor = form.partition("*")
    if isinstance(value, dict | list):
        raise QuoteError(f"one value is wanted, not a {type(value).__name__}")
    try:
        written = format(value * float(factor) if star else value, form)
    except (TypeError, ValueError) as error:
        raise QuoteError(f"{value!r} as {form!r}: {error}") from None
    written = written.replace("-", "−") if isinstance(value, int | float) else written
    return written[:-1] + " %" if form.endswith("%") else written


def _split(call: str, least: int) -> list[str]:
    try:
        words = shlex.split(call)
    except ValueError as error:
        raise QuoteError(f"{call}: {error}") from None
    if len(words) < least:
        raise QuoteError(f"{call}: a file and a place are wanted")
    return words


def _quote(call: str, root: Path) -> str:
    file, pointer, *form = _split(call, 2)
    if len(form) > 1:
        raise QuoteError(f"{call}: too many words; put what holds spaces in double quotes")
    return text(look_up(_read(root / file), pointer), *form)


def _cell(template: str, key: str, entry: Any) -> str:
    def field(found: re.Match[str]) -> str:
        place, form = found[1], found[2] or ""
        return key if place == "@" else text(look_up(entry, "" if place == "." else place), form)

    return FIELD.sub(field, template)


def _table(call: str, root: Path) -> str:
    file, pointer, *columns = _split(call, 3)
    entries = look_up(_read(root / file), pointer)
    if not isinstance(entries, dict | list):
        raise QuoteError(f"{call}: a table is made of a list or an object")
    pairs = entries.items() if isinstance(entries, dict) else enumerate(entries)
    heads, _, templates = zip(*(column.partition("=") for column in columns), strict=True)
    rows = [[_cell(template, str(key), entry) for template in templates] for key, entry in pairs]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:], ""])


def _source(call: str, root: Path) -> str:
    from tools.listings import source

    file, name = _split(call, 2)
    try:
        return source(root / file, name)
    except (LookupError, OSError) as error:
        raise QuoteError(str(error)) from None


def _options(call: str, _: Path) -> str:
    from tools.listings import options

    try:
        return options(call.strip())
    except LookupError as error:
        raise QuoteError(str(error)) from None


Render = Callable[[str, Path], str]
LISTINGS: list[tuple[re.Pattern[str], Render]] = [(SOURCE, _source), (OPTIONS, _options)]
NUMBERS: list[tuple[re.Pattern[str], Render]] = [(QUOTE, _quote), (TABLE, _table)]


def rewrite(page: str, root: Path = ROOT) -> tuple[str, list[str]]:
    """The page with every quote as the files have it, and one line for each that differed.

    Raises:
        QuoteError: a quote names nothing, or its comments do not pair.
    """
    differences: list[str] = []

    def renewed(found: re.Match[str], render: Render) -> str:
        now = render(found["call"], root)
        if now != found["text"]:
            was, now_is = (shorten(repr(text), 150) for text in (found["text"], now))
            differences.append(f"{found['call']}: the page has {was}, the files {now_is}")
        return f"{found['open']}{now}{found['close']}"

    def renew(text: str, kinds: list[tuple[re.Pattern[str], Render]]) -> str:
        for pattern, render in kinds:
            text = pattern.sub(partial(renewed, render=render), text)
        return text

    pieces = FENCE.split(renew(page, LISTINGS))  # prose, a fenced block, prose, ...; in a block a quote is only shown
    pieces[::2] = [renew(prose, NUMBERS) for prose in pieces[::2]]
    left = "".join(pieces[::2])
    for pattern, _ in (*LISTINGS, *NUMBERS):
        left = pattern.sub("", left)
    if first := FIRST.search("".join(pieces[::2])):
        raise QuoteError(f"a quote must not begin a line, which Markdown would then take for HTML: {first[0]}")
    if lone := MARKER.search(left):
        raise QuoteError(f"the comments of a quote do not pair: {left[lone.start() :][:80]}")
    return "".join(pieces), differences


def different_pictures(page: Path, root: Path = ROOT) -> list[tuple[Path, Path]]:
    """Source and copy of the pictures of a page of which the copy is not the source.

    Raises:
        QuoteError: there is no such source, or the page shows no picture behind it.
    """
    pairs = []
    for call, _, shown in PICTURE.findall(FENCE.sub("", page.read_text())):
        original, copy = root / call, page.parent / shown
        if not shown or not original.exists():
            raise QuoteError(f"<!--picture {call}-->: " + ("no such file" if shown else "no picture follows"))
        if not copy.exists() or copy.read_bytes() != original.read_bytes():
            pairs.append((original, copy))
    return pairs


def main(argv: list[str]) -> int:
    """Rewrite or check all pages; the exit status is 1 where a check found a difference, 2 where a quote is wrong."""
    check, status = "--check" in argv, 0
    for path in pages():
        name = path.relative_to(ROOT)
        try:
            page, differences = rewrite(path.read_text())
            pictures = different_pictures(path)
        except QuoteError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 2
            continue
        for line in differences:
            print(f"{name}: {line}")
        for original, copy in pictures:
            print(f"{name}: {copy.name} is not {original.relative_to(ROOT)}")
        if check:
            status = max(status, int(bool(differences or pictures)))
            continue
        if differences:
            path.write_text(page)
        for original, copy in pictures:
            shutil.copyfile(original, copy)
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
