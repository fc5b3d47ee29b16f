"""The section that a notebook shows, in the frame it is shown in."""

import re

import pytest

import ditlab
from ditlab.core.errors import InputError
from ditlab.lab import Lens
from ditlab.lab.notebook import frame
from tests.lab.test_page import opened

SURROUNDINGS = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A notebook</title><body>"""


def written(run, folder):
    """What a notebook would hold, as a page."""
    page = folder / "notebook.html"
    page.write_text(SURROUNDINGS + frame(run))
    return page


def figure(within, row):
    """A number of the table in the section about attention."""
    cell = within.get_by_role("row", name=re.compile(f"^{row}")).get_by_role("cell").first
    return float(re.search(r"[\d.]+", cell.inner_text())[0])


def test_attention_works_in_a_notebook_offline(chromium, runs, tmp_path):
    page_file = written(ditlab.load(runs / "circles"), tmp_path)
    assert page_file.stat().st_size < 2e6
    assert str(runs) not in page_file.read_text().replace(str(runs / "circles"), "")
    lens = Lens(runs / "circles")
    with opened(chromium, page_file.as_uri(), ("data:", "blob:", "file:", "about:"), offline=True) as page:
        inside = page.frame_locator("iframe")
        inside.get_by_text(re.compile("of its attention to itself")).wait_for()
        assert inside.locator("main > section").count() == 1
        grid = inside.get_by_role("application", name="The image: choose a patch")
        box = grid.bounding_box()
        grid.click(position={"x": 2.5 * box["width"] / 4, "y": 1.5 * box["width"] / 4})
        inside.get_by_text("What patch 6").or_(inside.get_by_role("columnheader", name="Patch 6")).first.wait_for()
        expected = lens.attention(input="data:0", t=0.3, layer=2)
        assert figure(inside, "Entropy") == pytest.approx(expected["entropy"][6], rel=6e-3, abs=1e-3)
        inside.get_by_role("combobox", name="Layer").select_option("1")
        inside.get_by_role("columnheader", name=re.compile("Layer 1")).wait_for()
        expected = lens.attention(input="data:0", t=0.3, layer=1)
        assert figure(inside, "Entropy") == pytest.approx(expected["entropy"][6], rel=6e-3, abs=1e-3)
        assert "not in this file" not in inside.locator("main").inner_text()


def test_a_network_without_attention_shows_how_it_denoises(chromium, runs, tmp_path):
    page_file = written(ditlab.load(runs / "points"), tmp_path)
    assert page_file.stat().st_size < 2e6
    with opened(chromium, page_file.as_uri(), ("data:", "blob:", "file:", "about:"), offline=True) as page:
        inside = page.frame_locator("iframe")
        inside.get_by_text(re.compile("asked the network")).wait_for()
        assert inside.locator("main > section").get_attribute("id") == "denoise"


def test_elsewhere_a_line_says_what_to_do(runs, capsys):
    ditlab.show(ditlab.load(runs / "points"))
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"ditlab lab {runs / 'points'}" in said


def test_maps_too_large_for_a_notebook_are_refused(runs, monkeypatch):
    monkeypatch.setattr("ditlab.lab.export.PART_BYTES", 1000)
    with pytest.raises(InputError, match="too large for one file: look at them with ditlab lab"):
        frame(ditlab.load(runs / "circles"))
