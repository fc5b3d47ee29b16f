"""Every code block of the documentation is executed, page by page, in the order in which it stands there.

Blocks are ``python``, which share their names on a page; ``console``, of which the lines after "$ " are commands, the
others what was printed; ``json``; and ``text``, which is no code. A Python block that begins with the docstring
``\"""name.py: …`` is that file besides.
"""

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import KINDS, blocks_of, pages_to_test
from tests.docs.commands import CHANGED, READ, UNRUN, carry_out, why_read
from tools.quotes import ROOT

PAGES = [path for path in pages_to_test() if blocks_of(path)]
COMMANDS = [command for path in PAGES for block in blocks_of(path) for command in block.commands]
FILE = re.compile(r'"""(\w+\.py): ')


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_of_a_page(path, folder):
    names = {"__name__": "page"}
    for block in blocks_of(path):
        place = f"{block.page}:{block.line}"
        if block.kind == "python":
            if file := FILE.match(block.body):
                Path(folder, file[1]).write_text(block.body)
            run = block.body if block.first_line not in UNRUN else block.first_line
            compile(block.body, str(path), "exec")
            exec(compile("\n" * block.line + run, str(path), "exec"), names)
        elif block.kind == "console":
            assert block.commands, f"{place}: a console without a command"
            for command in block.commands:
                carry_out(command)
        elif block.kind == "json":
            json.loads(block.body)
        else:
            assert block.kind in KINDS, f"{place}: name the language: {', '.join(KINDS)}"


def test_nothing_is_left_out_that_is_not_there():
    for entry in READ:
        assert any(why_read(command) == entry for command in COMMANDS), f"no page has {entry!r} any more"
    first_lines = [block.first_line for path in PAGES for block in blocks_of(path)]
    for line in UNRUN:
        assert line in first_lines, f"no page has {line!r} any more"
    for command in CHANGED:
        assert command in COMMANDS, f"no page has {command!r} any more"


def test_code_is_fenced():
    indented = re.compile(r"^    (\$|ditlab |python |pip |make |import |from \w+ import )", re.MULTILINE)
    for path in pages_to_test():
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert not indented.search(prose), f"{path}: {indented.search(prose)}"
