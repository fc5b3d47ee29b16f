"""The site is built without a warning, is whole, and fetches nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tools.quotes import ROOT

pytest.importorskip("zensical")
LOADED = {"img": "src", "script": "src", "source": "src", "iframe": "src"}  # <link rel=stylesheet|icon href> besides


class Page(HTMLParser):
    """What a page loads, and where it links to."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get(LOADED.get(tag)):
            self.loads.append(found[LOADED[tag]])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", folder)
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "zensical.toml").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert f'"{path.relative_to(ROOT / "docs")}"' in navigation, f"zensical.toml: add {path.name} to nav"


def test_what_pages_load_and_link_to_is_there(site):
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 30
    for path in pages:
        page = Page(path)
        for place in page.loads:
            assert not re.match(r"(https?:)?//", place), f"{path.name} loads {place}"
        for place in (*page.loads, *page.links):
            target = unquote(urldefrag(place).url.split("?")[0])
            if target and not re.match(r"[a-z]+:", target):
                assert Path(path.parent, target).exists(), f"{path.relative_to(site)}: there is no {place}"


def test_the_reference_holds_every_public_name(site):
    import ditlab

    text = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    for name in ditlab.__all__:
        assert re.search(rf'id="ditlab\.[\w.]+\.{name}"', text), f"{name} is on no page of the reference"


def test_a_broken_link_fails(site, tmp_path):
    shutil.copytree(site.parent / "docs", tmp_path / "docs")
    shutil.copytree(site.parent / "src", tmp_path / "src")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    with (tmp_path / "docs" / "lab.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "lab.md" in done.stdout + done.stderr
