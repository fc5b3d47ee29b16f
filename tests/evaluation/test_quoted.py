"""The example in docs/evaluation.md is what the command prints of the figures that docs/evaluation.json holds."""

import json
from pathlib import Path

from ditlab.cli.output import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text()
MEASURED = json.loads((DOCS / "evaluation.json").read_text())


def test_the_example_is_what_was_printed():
    block = PAGE.split("\n## An example\n")[1].split("```text\n")[1].split("```")[0]
    rows = table(MEASURED["ditlab eval digits"])
    lines = [line.split(maxsplit=1) for line in block.splitlines()]
    assert len(lines) > 5
    for name, text in lines:
        assert rows[name] == text


def test_the_readme_says_what_the_demo_scores():
    name, text = (DOCS.parent / "README.md").read_text().split("```text\n")[1].split("```")[0].split(maxsplit=1)
    assert table(json.loads((DOCS / "demo.json").read_text()))[name] == text.strip()
