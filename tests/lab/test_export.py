"""The page as one file: whole, small, and of the same answers."""

import base64
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays

from ditlab.cli.main import main
from ditlab.core.errors import InputError
from ditlab.lab import Lens
from ditlab.lab.export import INPUTS, TIMES, _affordable
from ditlab.lab.server.api import PAGE


@pytest.fixture(scope="module")
def page(exported):
    return exported.read_text()


def embedded(page):
    text = re.search(r'<script type="application/json" id="embedded">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(text)


def test_the_file_is_whole_and_not_too_big(page):
    assert len(page.encode()) < 10e6
    modules = json.loads(re.search(r'<script type="importmap">(.*?)</script>', page)[1])["imports"]
    assert set(modules) == {file.relative_to(PAGE).as_posix() for file in PAGE.rglob("*.js")}
    for name, address in modules.items():
        text = base64.b64decode(address.partition("base64,")[2]).decode()
        assert not re.search(r"""(from|import)\s+['"]\.""", text), f"{name} would look for another file"
        for wanted in re.findall(r'^(?:import|export)\b[^;]*?from "([^"]+)"', text, re.MULTILINE):
            assert wanted in modules
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_the_answers_in_it_are_those_of_the_lens(page, runs):
    content = embedded(page)
    lens = Lens(runs / "circles")
    found = 0
    for path, entry in content["paths"].items():
        if "/attention?" in path and "head=2&input=data%3A1&layer=1" in path and "t=0.5" in path:
            arrays = load_arrays(base64.b64decode(entry["body"]))
            np.testing.assert_array_equal(arrays["map"], lens.attention(input="data:1", t=0.5, layer=1, head=2)["map"])
            found += 1
    assert found == 1
    assert {setting["solver"] for setting in content["choices"]["settings"]} == {"heun", "euler", "dpm-solver++"}


def test_large_maps_are_refused_and_middling_ones_thinned():
    def run(tokens):
        return {
            "name": "big",
            "has_examples": True,
            "attention": [{"layer": i, "heads": 4, "tokens": tokens} for i in range(4)],
        }

    assert _affordable(run(16), INPUTS) == (list(INPUTS), list(TIMES))
    inputs, times = _affordable(run(256), INPUTS)
    assert 1 <= len(inputs) * len(times) < len(INPUTS) * len(TIMES)
    with pytest.raises(InputError, match="ditlab lab"):
        _affordable(run(1024), INPUTS)


def test_no_path_of_this_machine_is_in_it(page, runs):
    assert str(runs) not in page
    assert str(runs.parent) not in page


@pytest.mark.parametrize("run", ["digits", "points", "unet"])
def test_other_runs_can_be_exported(run, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("ditlab.lab.export.INPUTS", ("data:0",))
    monkeypatch.setattr("ditlab.lab.export.TIMES", (0.5,))
    monkeypatch.setattr("ditlab.lab.export.MAX_CHANGE_BYTES", 0)
    out = tmp_path / "page.html"
    assert main(["lab", str(runs / run), "--export", str(out)]) == 0
    assert len(embedded(out.read_text())["paths"]) > 10


def test_wrong_wishes_get_one_line(runs, tmp_path, capsys):
    for arguments, word in (
        ([str(runs), "--export", str(tmp_path / "x.html")], "one run"),
        ([str(runs / "circles"), "--export", str(tmp_path / "x.pdf")], ".html"),
        ([str(tmp_path)], "no run"),
        ([str(runs / "circles"), "--export", str(tmp_path / "no" / "x.html")], "--export"),
        ([str(runs), "--host", "no.such.host.invalid"], "--host"),
    ):
        assert main(["lab", *arguments]) == 2
        message = capsys.readouterr().err.strip()
        assert len(message.splitlines()) == 1
        assert word in message
