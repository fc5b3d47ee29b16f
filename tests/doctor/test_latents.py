"""What the doctor says of the latents that a run is trained on: of the images behind them, and not of draws."""

import shutil
from pathlib import Path

import pytest

from ditlab.data.latents.survey import survey_store
from ditlab.doctor.report import examine
from ditlab.recipes import latents as recipe
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from tests.latents import encode, images_and_vae


@pytest.fixture
def of_copies(in_tmp):
    """A run on the latents of two images, of each of which there are twenty, and of a file that is no image."""
    images_and_vae(in_tmp, each=1)
    for file in sorted(Path("photos").rglob("*.png")):
        for i in range(1, 20):
            shutil.copy(file, file.with_name(f"copy-{i:02d}.png"))
    Path("photos/spoilt.png").write_bytes(b"no image")
    assert encode("--bad-share", "0.5") == 0
    folder = RunFolder("runs/copies")
    folder.path.mkdir(parents=True)
    folder.write_config(recipe(survey_store("store")))
    build_dataset(folder.read_config()).prepare(folder.quarantine_file)
    return folder


def test_copies_of_an_image_are_told_from_images(of_copies):
    """Though each latent is another draw."""
    found = next(check for check in examine(of_copies.path, n=64).checks if check.name == "data")
    assert (found.value["size"], found.value["distinct"]) == (40, 2)
    assert found.mark == "warning"


def test_images_that_could_not_be_encoded_are_told(of_copies):
    found = next(check for check in examine(of_copies.path, n=64).checks if check.name == "bad images")
    assert found.value == {"bad": 1, "share": 1 / 41}
    assert "spoilt.png" in found.reason
