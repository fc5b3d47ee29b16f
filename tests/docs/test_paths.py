"""The files that the pages name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ditlab"
BASES = [ROOT, PACKAGE, PACKAGE / "lab", PACKAGE / "lab" / "static", PACKAGE / "diffusion", PACKAGE / "data" / "images"]
BASES += [ROOT / "tests", ROOT / "studies"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
HISTORY = {"log.md", "decisions"}  # which name files as they were


@pytest.mark.parametrize("page", [p for p in PAGES if not HISTORY & set(p.parts)], ids=lambda p: p.name)
def test_the_files_that_a_page_names_are_there(page):
    named = re.findall(r"`([\w/]+\.(?:py|js))`", page.read_text())
    assert [name for name in named if not any((base / name).exists() for base in BASES)] == []
