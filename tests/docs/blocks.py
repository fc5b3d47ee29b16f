"""The fenced blocks of the documentation, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tools.quotes import ROOT, pages, quotes

KINDS = ("python", "console", "json", "text")
UNTESTED = ("docs/log.md", "docs/decisions/")  # what was done then, with the code of then
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    body: str

    @property
    def first_line(self):
        return self.body.split("\n", 1)[0]

    @property
    def commands(self):
        """What follows a "$ ", without remarks; other lines of a console are what was printed."""
        said = self.body.replace("\\\n", " ").splitlines()
        return [shlex.join(words) for line in said if line.startswith("$ ") and (words := split(line[2:]))]


def split(command):
    return shlex.split(command, comments=True)


def blocks_of(path: Path):
    """The blocks of a page in order, without listings of the source, which test_numbers.py compares with it."""
    name, text = str(path.relative_to(ROOT)), path.read_text()
    for _, start, end, _ in sorted((quote for quote in quotes(name, text) if quote.kind == "source"), reverse=True):
        text = text[:start] + "\n" * text.count("\n", start, end) + text[end:]
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found["kind"], found["body"])
        for found in FENCE.finditer(text)
    ]


def pages_to_test():
    return [path for path in pages() if not str(path.relative_to(ROOT)).startswith(UNTESTED)]
