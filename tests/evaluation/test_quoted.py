"""The figures that docs/evaluation.md quotes are those that were measured, which docs/evaluation.json holds."""

import json
from pathlib import Path

import pytest

from ditlab.cli.verbs import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text()
WORDS = " ".join(PAGE.split())
MEASURED = json.loads((DOCS / "evaluation.json").read_text())


def test_the_example_is_what_was_printed():
    block = PAGE.split("of the run that `ditlab train digits` makes:")[1].split("```")[1].strip()
    rows = table(MEASURED["ditlab eval digits"])
    lines = [line.split(maxsplit=1) for line in block.splitlines()]
    assert len(lines) > 5
    for name, text in lines:
        assert rows[name] == text


@pytest.mark.parametrize(
    ("command", "quoted"),
    [
        (
            "ditlab eval digits --guidance 1",
            "recall is {recall:.4f}, precision {precision:.4f} and the Fréchet distance",
        ),
        ("ditlab eval digits --guidance 1", "and the Fréchet distance {frechet:.4f}."),
        ("ditlab eval cifar --n 500 --steps 10", "`frechet {rows[frechet]}`, `memorisation_ratio"),
        ("ditlab eval cifar --n 500 --steps 10", "`memorisation_ratio {rows[memorisation_ratio]}`"),
        ("ditlab eval cifar --n 500 --steps 10", "`accuracy {rows[accuracy]}`"),
    ],
)
def test_sentences_quote_what_was_measured(command, quoted):
    figures = MEASURED[command]
    rows = {name: " ".join(text.split()) for name, text in table(figures).items()}
    assert quoted.format(**figures, rows=rows) in WORDS


@pytest.mark.parametrize("options", ["", " --n 200", " --guidance 1", " --features classifier"])
def test_the_table_holds_what_was_measured(options):
    found = MEASURED[f"ditlab eval digits{options}"]
    low, high = found["frechet_interval"]
    name = f"`{options.strip()}`" if options else "as it is: 1,000 samples, pixels, guidance 2"
    assert f"| {name} | {found['frechet']:.3f} [{low:.3f}, {high:.3f}] | {found['frechet_floor']:.3f} |" in PAGE
