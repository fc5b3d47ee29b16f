"""Every number that the documentation quotes is the one in its JSON file."""

import json
import shutil

import pytest

from ditlab.cli.main import VERBS
from tools.quotes import ROOT, QuoteError, different_pictures, look_up, pages, rewrite, text

RESULT = {
    "verdict": "not shown here",
    "reasons": ["mean |gate| is 0"],
    "valid": 0.9612,
    "seconds": 0.0271,
    "change": -0.25,
    "parameters": 252496,
    "rows": [{"kind": "film", "depth": 4, "loss": 0.2}, {"kind": "film", "depth": 12, "loss": 0.3}],
    "kinds": {"adaln-zero": {"loss": {"mean": 0.1234, "sd": 0.001}}, "film": {"loss": {"mean": 0.2, "sd": 0.01}}},
    "maps": [[0.42, 0.43], [0.44, 0.46]],
}
TABLE = """<!--table r.json /kinds "kind=`{@}`" "loss={loss/mean:.2f} ± {loss/sd:.3f}"-->
| kind | loss |
|---|---|
| `adaln-zero` | 0.12 ± 0.001 |
| `film` | 0.20 ± 0.010 |
<!--/table-->
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(RESULT))
    return tmp_path


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_page_has_the_numbers_of_its_files(path):
    _, differences = rewrite(path.read_text())
    assert not differences, "make quotes"
    assert not different_pictures(path), "make quotes"


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ("/valid .1%", "96.1 %"),
        ("/verdict", "not shown here"),
        ("/seconds .0f*1000", "27"),
        ("/change +.2f", "−0.25"),
        ("/parameters ,", "252,496"),
        ("/rows/kind=film,depth=12/loss", "0.3"),
        ("/rows/0/loss .2f", "0.20"),
        ("/kinds/adaln-zero/loss/mean .3f", "0.123"),
        ("/maps/1/0", "0.44"),
    ],
)
def test_quotes_are_written_and_differences_found(folder, call, written):
    right = f"It is <!--q r.json {call}-->{written}<!--/q--> here."
    assert rewrite(right, folder) == (right, [])
    wrong = right.replace(f"-->{written}<", "-->0.99<")
    page, differences = rewrite(wrong, folder)
    assert page == right
    assert len(differences) == 1
    assert "'0.99'" in differences[0]
    assert repr(written) in differences[0]


def test_two_quotes_on_a_line_are_two(folder):
    line = "On <!--q r.json /valid .0%-->96 %<!--/q--> of <!--q r.json /parameters-->252,496<!--/q-->"
    page, differences = rewrite(line, folder)
    assert len(differences) == 1
    assert page.endswith("-->252496<!--/q-->")


def test_tables_are_made_and_differences_found(folder):
    assert rewrite(TABLE, folder) == (TABLE, [])
    page, differences = rewrite(TABLE.replace("0.12", "0.13"), folder)
    assert page == TABLE
    assert len(differences) == 1
    empty = TABLE.split("\n")[0] + "\n<!--/table-->\n"
    assert rewrite(empty, folder)[0] == TABLE


def test_tables_of_lists(folder):
    table = '<!--table r.json /maps "layer={@}" "early={0}" "late={1:.1f}"-->\n<!--/table-->'
    lines = rewrite(table, folder)[0].split("\n")
    assert lines[1:5] == ["| layer | early | late |", "|---|---|---|", "| 0 | 0.42 | 0.4 |", "| 1 | 0.44 | 0.5 |"]


def test_a_bar_in_a_cell_is_no_column(folder):
    page, _ = rewrite('<!--table r.json /reasons "found={.}"-->\n<!--/table-->', folder)
    assert "| mean \\|gate\\| is 0 |" in page


def test_pictures_are_copies(folder):
    (folder / "docs" / "images").mkdir(parents=True)
    (folder / "plot.png").write_bytes(b"new")
    page = folder / "docs" / "page.md"
    page.write_text("<!--picture plot.png-->\n![A plot](images/plot.png)\n")
    assert different_pictures(page, folder) == [(folder / "plot.png", page.parent / "images/plot.png")]
    shutil.copyfile(*different_pictures(page, folder)[0])
    assert different_pictures(page, folder) == []
    (folder / "plot.png").write_bytes(b"newer")
    assert len(different_pictures(page, folder)) == 1
    page.write_text("<!--picture gone.png-->\n![A plot](images/plot.png)\n")
    with pytest.raises(QuoteError, match=r"gone\.png"):
        different_pictures(page, folder)
    page.write_text("<!--picture plot.png-->\nNo picture.\n")
    with pytest.raises(QuoteError, match=r"plot\.png"):
        different_pictures(page, folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("It is <!--q gone.json /a-->1<!--/q-->", "gone.json"),
        ("It is <!--q r.json /vaild-->1<!--/q-->", "no 'vaild' in verdict, reasons"),
        ("It is <!--q r.json /rows/kind=film/loss-->1<!--/q-->", "kind=film"),
        ("It is <!--q r.json /rows/7/loss-->1<!--/q-->", "'7'"),
        ("It is <!--q r.json /rows-->1<!--/q-->", "list"),
        ("It is <!--q r.json /verdict .2f-->1<!--/q-->", "not shown here"),
        ("It is <!--q r.json-->1<!--/q-->", "a file and a place"),
        ("<!--q r.json /parameters ,-->252,496<!--/q-->", "begin a line"),
        ("It is <!--q r.json /valid a b-->1<!--/q-->", "double quotes"),
        ("It is <!--q r.json /valid .1%-->96.1 %", "do not pair"),
        ("96.1 %<!--/q-->", "do not pair"),
        ("It is <!-- q r.json /valid .1%-->96.1 %<!--/q-->", "do not pair"),
        ('<!--table r.json /kinds "kind={@}"-->\n', "do not pair"),
        ('<!--table r.json /valid "kind={@}"-->\n<!--/table-->', "a list or an object"),
    ],
)
def test_a_wrong_quote_is_an_error(folder, line, message):
    with pytest.raises(QuoteError, match=message.replace("+", r"\+")):
        rewrite(line, folder)


def test_a_quote_in_a_fenced_block_is_only_shown(folder):
    page = "```\n<!--q gone.json /a-->1<!--/q-->\n```\n"
    assert rewrite(page, folder) == (page, [])


def test_pointers_reach_keys_with_slashes():
    assert look_up({"S/4": {"a~b": 1}}, "/S~14/a~0b") == 1
    assert text(True) == "True"


def test_listings_are_the_source_without_docstrings(tmp_path):
    (tmp_path / "m.py").write_text(
        '@frozen\nclass A:\n    """Said.\n\n    More."""\n\n    x = 1\n\n    def f(self):\n        """Said."""\n'
        "        return 1\n"
    )
    page = "<!--source m.py A.f-->\n<!--/source-->\n<!--source m.py A-->\n<!--/source-->\n"
    filled, differences = rewrite(page, tmp_path)
    assert len(differences) == 2
    assert "```python\ndef f(self):\n    return 1\n```\n" in filled
    assert "```python\n@frozen\nclass A:\n    x = 1\n\n    def f(self):\n        return 1\n```\n" in filled
    assert rewrite(filled, tmp_path) == (filled, [])
    assert len(rewrite(filled.replace("return 1", "return 2"), tmp_path)[1]) == 2
    for wrong in ("m.py A.g", "gone.py A"):
        with pytest.raises(QuoteError, match=r"A.g|gone.py"):
            rewrite(f"<!--source {wrong}-->\n<!--/source-->\n", tmp_path)


def test_options_are_those_of_the_section():
    filled, _ = rewrite("<!--options ditlab.cli.options:DoctorOptions-->\n<!--/options-->\n")
    assert "| `RUN` | folder of a run, or its name in runs/ |  |" in filled
    assert "| `--device` | where to measure: `auto`, `cpu`, `cuda`, `mps` | `auto` |" in filled
    assert "| `--json` |" in filled
    with pytest.raises(QuoteError, match="NoOptions"):
        rewrite("<!--options ditlab.cli.options:NoOptions-->\n<!--/options-->\n")


def test_every_verb_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    for verb in VERBS:
        assert f"## `ditlab {verb}" in page, f"docs/reference/command-line.md: add ditlab {verb}"
