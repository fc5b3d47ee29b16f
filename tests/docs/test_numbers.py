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
    "parameters": 252496,
    "rows": [{"kind": "film", "depth": 4, "loss": 0.2}, {"kind": "film", "depth": 12, "loss": 0.3}],
    "kinds": {"adaln-zero": {"loss": {"mean": 0.1234, "sd": 0.001}}, "film": {"loss": {"mean": 0.2, "sd": 0.01}}},
    "maps": [[0.42, 0.43], [0.44, 0.46]],
}
COLUMNS = {
    "losses": ["kind=`{@}`", "loss={loss/mean:.2f} ± {loss/sd:.3f}"],
    "maps": ["layer={@}", "early={0}", "late={1:.1f}"],
    "found": ["found={.}"],
}
TABLE = """| kind | loss |
|---|---|
| `adaln-zero` | 0.12 ± 0.001 |
| `film` | 0.20 ± 0.010 |
"""


@pytest.fixture
def page(tmp_path):
    """Writes a page with one heading, ``A``, and what the list has for it; gives what rewrite makes of it."""
    (tmp_path / "r.json").write_text(json.dumps(RESULT))
    (tmp_path / "docs").mkdir()

    def rewritten(body, *entries):
        root = tmp_path / str(len(list(tmp_path.iterdir())))  # the list is read once for each folder
        shutil.copytree(tmp_path / "docs", root / "docs")
        for file in tmp_path.glob("*.*"):
            shutil.copy(file, root)
        lines = [f"{name} = {json.dumps(columns)}" for name, columns in COLUMNS.items()]
        listed = "\n".join(["[columns]", *lines, '["docs/p.md"]', f"A = {json.dumps(entries)}"])
        (root / "docs" / "quotes.toml").write_text(listed)
        (root / "docs" / "p.md").write_text(f"# A\n\n{body}\n## B\n\n{body}")
        text, differences = rewrite("docs/p.md", root)
        return text.removeprefix("# A\n\n").split("\n## B")[0], differences

    return rewritten


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_page_has_the_numbers_of_its_files(path):
    assert not rewrite(str(path.relative_to(ROOT)))[1], "make quotes"
    assert "<!--" not in path.read_text() or path.name == "log.md", "a page is readable in an editor: no comments"


def test_pages_show_the_pictures_that_were_made():
    assert not different_pictures(), "make quotes"


@pytest.mark.parametrize(
    ("place", "form", "written"),
    [
        ("/valid", ".1%", "96.1 %"),
        ("/verdict", "", "not shown here"),
        ("/valid", ".0f*1000", "961"),
        ("/parameters", ",", "252,496"),
        ("/rows/kind=film,depth=12/loss", "", "0.3"),
        ("/rows/0/loss", "+.2f", "+0.20"),
        ("/kinds/adaln-zero/loss/mean", ".3f", "0.123"),
        ("/maps/1/0", "", "0.44"),
    ],
)
def test_values_are_found_and_formatted(place, form, written):
    assert text(look_up(RESULT, place), form) == written


def test_small_differences_have_a_real_minus():
    assert text(-0.25, "+.2f") == "−0.25"
    assert text("a-b") == "a-b"


def test_numbers_in_a_sentence_are_written_where_its_words_are(page):
    entry = ["text", "r.json", "", "valid {valid:.1%} of the time, with {parameters:,} numbers"]
    right = "It is valid 96.1 % of the\ntime, with 252,496 numbers.\n"
    assert page(right, entry) == (right, [])
    wrong = right.replace("96.1", "99.9").replace("252,496", "many")
    assert page(wrong, entry)[0] == right
    assert len(page(wrong, entry)[1]) == 2
    below = ["text", "r.json", "/rows/kind=film,depth=12", "depth {depth} has"]
    assert page("At depth 3 has.\n", below)[0] == "At depth 12 has.\n"


def test_tables_are_found_by_their_first_line_in_order(page):
    entries = [["losses", "r.json", "/kinds"], ["maps", "r.json", "/maps"], ["losses", "r.json", "/kinds"]]
    maps = "| layer | early | late |\n|---|---|---|\n| 0 | 0.42 | 0.4 |\n| 1 | 0.44 | 0.5 |\n"
    right = f"{TABLE}\nText.\n\n{maps}\n{TABLE}"
    assert page(right, *entries) == (right, [])
    assert page(right.replace("0.12", "0.13"), *entries)[0] == right
    heads = "| kind | loss |\n\nText.\n\n| layer | early | late |\n\n| kind | loss |\n"
    assert page(heads, *entries)[0] == right


def test_a_bar_in_a_cell_is_no_column(page):
    assert "| mean \\|gate\\| is 0 |" in page("| found |\n", ["found", "r.json", "/reasons"])[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["text", "gone.json", "", "is {a} here"], "gone.json"),
        (["text", "r.json", "", "is {vaild} here"], "no 'vaild' in verdict, reasons"),
        (["text", "r.json", "/rows/kind=film", "is {loss} here"], "kind=film"),
        (["text", "r.json", "", "is {rows/7} here"], "'7'"),
        (["text", "r.json", "", "is {rows} here"], "list"),
        (["text", "r.json", "", "is {verdict:.2f} here"], "not shown here"),
        (["text", "r.json", "", "was {valid} here"], "occurs 0 times"),
        (["text", "r.json", "", "1 {valid} twice"], "occurs 2 times"),
        (["text", "r.json", "", "{valid} here"], "words around"),
        (["losses", "r.json", "/kinds"], "no place for losses"),
        (["losses", "r.json", "/valid"], "a list or an object"),
        (["lost", "r.json", "/kinds"], "no 'lost'"),
        (["source", "gone.py", "A"], "gone.py"),
        (["options", "ditlab.cli.options:NoOptions"], "NoOptions"),
    ],
)
def test_a_wrong_entry_is_an_error(page, entry, message):
    with pytest.raises(QuoteError, match=message):
        page("It is 1 here.\n1 2 twice, 1 3 twice.\n", entry)


def test_headings_are_not_comments_of_code(page):
    block = "```python\n# B\nx = 1\n```\n"
    assert page(block + "| found |\n", ["found", "r.json", "/reasons"])[0].startswith(block + "| found |\n|---|")


def test_pictures_are_copies(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "quotes.toml").write_text('[pictures]\n"docs/copy.png" = "plot.png"\n')
    original, copy = tmp_path / "plot.png", tmp_path / "docs" / "copy.png"
    original.write_bytes(b"new")
    assert different_pictures(tmp_path) == [(original, copy)]
    shutil.copyfile(original, copy)
    assert different_pictures(tmp_path) == []
    original.write_bytes(b"newer")
    assert different_pictures(tmp_path) == [(original, copy)]


def test_pointers_reach_keys_with_slashes():
    assert look_up({"S/4": {"a~b": 1}}, "/S~14/a~0b") == 1
    assert text(True) == "True"


def test_listings_are_the_source_without_docstrings(page, tmp_path):
    (tmp_path / "m.py").write_text(
        '@frozen\nclass A:\n    """Said.\n\n    More."""\n\n    x = 1\n\n    def f(self):\n        """Said."""\n'
        "        return 1\n"
    )
    entries = [["source", "m.py", "A.f"], ["source", "m.py", "A"]]
    filled, differences = page("```python\ndef f\n```\n\n```python\n@frozen\nclass A(B):\n```\n", *entries)
    assert len(differences) == 2
    assert "```python\ndef f(self):\n    return 1\n```\n" in filled
    assert "```python\n@frozen\nclass A:\n    x = 1\n\n    def f(self):\n        return 1\n```\n" in filled
    assert page(filled, *entries) == (filled, [])
    assert len(page(filled.replace("return 1", "return 2"), *entries)[1]) == 2


def test_options_are_those_of_the_section(page):
    filled, _ = page("| option | meaning | default |\n", ["options", "ditlab.cli.options:DoctorOptions"])
    defaults = {line.split(" | ")[0]: line.split(" | ")[-1].strip("| ") for line in filled.splitlines()[2:]}
    assert defaults == {"| `RUN`": "", "| `--n`": "`1024`", "| `--device`": "`auto`", "| `--json`": "`False`"}
    assert "`auto`, `cpu`, `cuda`, `mps`" in filled


def test_every_verb_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    for verb in VERBS:
        assert f"## `ditlab {verb}" in page, f"docs/reference/command-line.md: add ditlab {verb}"
