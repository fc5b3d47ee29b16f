"""The lab opens on an imported run: generated images take the place of training examples, which are elsewhere."""

import pytest

from ditlab.core.errors import InputError
from ditlab.interop.imports import import_checkpoint
from ditlab.lab import export
from ditlab.lab.server.library import Library
from tests.interop.test_imports import saved, small


def test_the_lab_opens_and_says_what_is_not_there(unchecked, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "INPUTS", ("sample:0",))  # of a page in one file
    monkeypatch.setattr(export, "TIMES", (0.3,))
    monkeypatch.setattr(export, "_changes", lambda *_: ())  # samples by 250 steps, for each part
    import_checkpoint(saved(tmp_path, small()), "facebook-dit", tmp_path / "run", heads=4)
    library = Library(tmp_path / "run")
    (name,) = library.folders()
    found = library.describe(name, None, "ema")
    assert (found["data"], found["shape"], found["num_classes"]) == ("external", [4, 8, 8], 10)
    assert [why for section, why in found["sections"].items() if section != "gates"] == [None] * 7
    assert "was imported" in found["sections"]["gates"]
    lens = library.lens(name)
    assert lens.input(input="sample:1")["x"].shape == (4, 8, 8)
    assert lens.attention(input="sample:1", layer=1, head=2)["map"].shape == (16, 16)
    with pytest.raises(InputError, match="was trained elsewhere"):
        lens.input(input="data:0")
    assert not any("gates" in path for path in export.embed(library, name)["paths"])
