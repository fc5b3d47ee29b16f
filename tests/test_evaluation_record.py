"""What evaluations leave in a run folder."""

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab.core.errors import InputError
from ditlab.evaluation.evaluator import Copy, Measured
from ditlab.evaluation.record import must_be_recordable, read_evaluations, record
from ditlab.runs.pictures import save_each

FIGURES = {"frechet": 1.0, "n": 100, "seed": 0, "features": "pixels"}


def measured(copies=None, **figures):
    return Measured({**FIGURES, **figures}, torch.zeros(4, 1, 8, 8), None, copies)


def test_an_evaluation_without_a_likelihood_leaves_one_with_it(tmp_path):
    with_nll = {"nll": 2.0, "nll_n": 256, "nll_trace": "exact", "nll_rtol": 1e-5}
    record(tmp_path, measured(**with_nll))
    record(tmp_path, measured(frechet=2.0))
    record(tmp_path, measured(frechet=3.0))
    record(tmp_path, measured(**with_nll, nll_error=0.5))
    kept = [(entry["frechet"], entry.get("nll_n"), entry.get("nll_error")) for entry in read_evaluations(tmp_path)]
    assert kept == [(3.0, None, None), (1.0, 256, 0.5)]


def test_pictures_of_an_earlier_evaluation_go(tmp_path):
    image = torch.zeros(1, 8, 8)
    written = record(tmp_path, measured([Copy(3, image, torch.zeros(5, 1, 8, 8), [0.5] * 5, ["a"] * 5)]))
    assert [path.name for path in written] == ["eval.json", "eval.png", "eval-nearest.png"]
    assert Image.open(tmp_path / "eval-nearest.png").size[0] > 100
    assert [path.name for path in record(tmp_path, measured())] == ["eval.json", "eval.png"]
    assert not (tmp_path / "eval-nearest.png").exists()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    must_be_recordable(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # a superuser may write anywhere
    with pytest.raises(InputError, match="cannot be written to"):
        must_be_recordable(tmp_path)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_any_number_of_bands_have_pictures(tmp_path, channels):
    images = torch.linspace(-1, 1, channels)[:, None, None].expand(channels, 8, 8)
    copies = [Copy(0, images, torch.stack([images] * 5), [0.5] * 5, ["a"] * 5)]
    written = record(tmp_path, Measured(FIGURES, torch.stack([images] * 4), None, copies))
    assert [path.name for path in written] == ["eval.json", "eval.png", "eval-nearest.png"]
    save_each(tmp_path, torch.stack([images]))
    levels = [round(255 * band / (channels - 1)) for band in range(channels)]
    with Image.open(tmp_path / "000000.png") as picture:
        assert picture.mode == ("RGB" if channels > 2 else "L")  # a fourth band is no transparency
        assert np.ravel(picture.getpixel((0, 0))).tolist() == pytest.approx(levels[: 3 if channels > 2 else 1], abs=1)
