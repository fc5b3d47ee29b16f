"""From a folder of images to a trained run, by the commands that a person types."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import ditlab
from ditlab.cli.main import main
from ditlab.core.errors import InputError
from ditlab.data.images.survey import survey
from ditlab.lab import Lens
from ditlab.lab.lens.describe import describe
from ditlab.runs.run import Run
from tests.cli.test_cli import SMALL, call
from tests.images import encoded, folder_of, noise, png, spoil, write

TRAIN = ["train", "images", *SMALL, "--steps", "4", "--warmup-steps", "1"]


@pytest.fixture
def folder(in_tmp):
    return folder_of(in_tmp / "pictures", ("cat", "dog", "owl"), each=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and its images, in a folder that tests may copy but not change."""
    here = tmp_path_factory.mktemp("images")
    folder_of(here / "pictures", ("cat", "dog", "owl"), each=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main([*TRAIN, "--data.path", "pictures"]) == 0
    return here


def test_a_folder_trains_by_one_command(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    config = json.loads((trained / "runs/images/config.json").read_text())
    assert config["data"] == {
        "kind": "images", "path": str(trained / "pictures"), "image_size": [8, 8], "channels": 3,
        "classes": ["cat", "dog", "owl"], "flip": False, "bad_share": 0.01, "cache": "auto",
        "window": None, "image_column": None, "repeats": {}, "scalars": [], "scalar_scales": {},
    }  # fmt: skip
    assert (trained / "runs/images/quarantine.jsonl").read_text() == ""
    status, out, _ = call(capsys, "eval", "images", "--n", 10, "--steps", 2, "--json")
    assert status == 0
    assert json.loads(out)["sliced_wasserstein"] > 0
    assert call(capsys, "eval", "images", "--n", 10, "--steps", 2, "--json")[1] == out
    assert call(capsys, "train", "--resume", "images", "--steps", 6)[0] == 0
    monkeypatch.setattr(Run, "sample", lambda *_, **__: pytest.fail("drawn before it was refused"))
    status, _, err = call(capsys, "eval", "images", "--n", 10, "--steps", 2, "--nll")
    assert (status, "drop --nll" in err) == (2, True)


def test_it_says_what_it_saw_and_chose(folder, capsys):
    write(folder / "notes.txt", b"x")
    write(folder / "cat" / "metadata.jsonl", b'{"file_name": "0000.png", "text": "a cat"}\nx\n')
    status, out, err = call(capsys, *TRAIN, "--data.path=pictures", "--dry-run", "--json", "--data.channels", 1)
    assert status == 0
    assert json.loads(out)["steps"] == 4
    assert err.splitlines() == [
        "24 grey images of 8×8 in 3 classes, 1 with captions, which are not used yet; 1 other file is left out",
        "note: cat/metadata.jsonl: 1 of 2 lines tell nothing of an image here",
        f"A DiT of {json.loads(out)['parameters']:,} parameters on patches of 1×1; 4 steps of 8, "
        "about 1.3 epochs; ditlab train images --help tells how to choose otherwise",
    ]
    assert not (folder.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--data.image-size", "12", "8"], (12, 8)),
        (["--data.image-size=12"], (12, 12)),
        (["--data.image_size", "12"], (12, 12)),
    ],
)
def test_the_size_is_the_persons_if_given(folder, capsys, words, size):
    small = ["--network", "unet", "--network.width", 8, "--steps", 1, "--sampling.steps", 1, "--batch-size", 4]
    assert call(capsys, "train", "images", "--data.path", "pictures", *words, "--data.flip", *small)[0] == 0
    run = ditlab.load("images")
    assert run.config.data.image_size == size
    assert run.shape == (3, *size)
    assert run.config.data.flip


WRONG = [
    (["train", "images"], "name the images: ditlab train images --data.path FOLDER"),
    (["train", "images", "--data.path"], "--data.path names nothing"),
    (["train", "images", "--data.path", "nowhere"], "nowhere: there is no such folder or file"),
    (["train", "images", "--data.path", "empty"], "there are no images in"),
    (["train", "images", "--data.path", "sizes"], "several sizes: add --data.image-size"),
    (["train", "images", "--data.path", "pictures", "--data.image-size", "97"], "use --data.image-size 96 96"),
    (["train", "images", "--data.path", "pictures", "--data.image-size", "0"], "--data.image-size 0 is no size"),
    (["train", "images", "--data.path", "pictures", "--data.image-size"], "--data.image-size"),
    (["train", "images", "--data.path", "pictures", "--data.image-size="], "is no size"),
    (["train", "images", "--data.path", "./nope"], "./nope: there is no such folder or file"),
    (["train", "images", "--data.path", "../nope"], "../nope: there is no such folder or file"),
    (["train", "images", "--data.path", "pictures", "--data.image-size", "x"], "--data.image-size"),
    (["train", "images", "--data.path", "pictures", "--data.image-size", "1", "2", "3"], "height and width"),
    (["train", "images", "--data.path", "pictures", "--data.channels", "0"], "data.channels=0: should be greater"),
    (["train", "images", "--data.path", "pictures", "--data.bad-share", "2"], "data.bad_share=2"),
    (["train", "images", "--data.path", "pictures", "--data.kind", "circles"], "--data.kind"),
    (["train", "images", "--data.path", "pictures/cat/0000.png"], "is a file"),
    (["train", "circles", "--data.path", "pictures"], "--data.path"),
    (["data", "chek", "x"], "ditlab data check"),
    (["data", "check", "nowhere"], "there is no such folder or file"),
    (["data", "check", "pictures", "--out", "x.jpg"], "must end in .png"),
    (["data", "check", "pictures", "--out", "pictures/cat/x.png"], "lies among the images"),
    (["data", "check", "pictures", "--image-size", "1", "2", "3"], "height and width"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda w: " ".join(w) if isinstance(w, list) else None)
def test_wrong_input_gets_a_short_message_and_leaves_nothing(folder, unchecked, capsys, words, message):
    (folder.parent / "empty").mkdir()
    write(folder.parent / "sizes" / "a.png", png(0))
    write(folder.parent / "sizes" / "b.png", png(0, (9, 9)))
    before = sorted(folder.parent.rglob("*"))
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 12
    assert sorted(folder.parent.rglob("*")) == before


def test_help_needs_no_images_and_shows_ones_own(folder, capsys):
    status, out, _ = call(capsys, "train", "images", "--help")
    assert status == 0
    assert "--data.image-size" in out
    assert "--data.path" in out
    assert "--data.classes" not in out
    status, out, _ = call(capsys, "train", "images", "--data.path", "pictures", "--help")
    assert status == 0
    assert "(default: 8 8)" in out


def test_too_many_bad_files_stop_the_run_and_mending_lets_it_go_on(folder, capsys):
    expected = spoil(folder / "cat")
    words = [*TRAIN, "--data.path", "pictures"]
    status, _, err = call(capsys, *words)
    assert status == 2
    line = err.splitlines()[-1]
    assert f"{len(expected)} of {24 + len(expected)} files cannot be used, above the share of 0.01" in line
    assert "all are listed in runs/images/quarantine.jsonl" in line
    assert "--data.bad-share 0.41" in line
    assert {path.name for path in (folder.parent / "runs/images").iterdir()} == {".lock", "quarantine.jsonl"}
    assert call(capsys, *words, "--data.bad-share", "0.41")[0] == 0
    listed = [json.loads(text) for text in (folder.parent / "runs/images/quarantine.jsonl").read_text().splitlines()]
    assert {entry["path"] for entry in listed} == {f"cat/{name}" for name in expected}


def test_a_run_works_without_its_images_as_far_as_it_can(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    (trained / "pictures").rename(trained / "moved")
    try:
        assert call(capsys, "sample", "images", "--n", 6, "--steps", 2, "--out", tmp_path / "x.npz")[0] == 0
        with np.load(tmp_path / "x.npz") as arrays:
            assert arrays["samples"].shape == (6, 3, 8, 8)
        lens = Lens("runs/images")
        described = describe(lens)
        assert (described["data"], described["num_classes"], described["sections"]["denoise"]) == ("images", 3, None)
        assert not described["has_examples"]
        assert call(capsys, "lab", "runs/images", "--export", tmp_path / "x.html")[0] == 0
        held = re.search(r'id="embedded">(.*?)</script>', (tmp_path / "x.html").read_text(), re.DOTALL)
        assert json.loads(held[1])["choices"]["input"] == ["sample:0", "sample:1"]
        lens.attention(input="sample:0", t=0.5, layer=0, head=0)
        monkeypatch.setattr(
            Run, "sample", lambda *_, **__: pytest.fail("drawn though there is nothing to compare with")
        )
        for words in (["eval", "images", "--n", 10, "--steps", 2], ["train", "--resume", "images", "--steps", 50]):
            status, _, err = call(capsys, *words)
            assert status == 2
            assert "pictures any more. Put them back, or give their new place" in err.splitlines()[-1]
        with pytest.raises(InputError, match="any more"):
            lens.attention(input="data:0", t=0.5, layer=0, head=0)
    finally:
        (trained / "moved").rename(trained / "pictures")
    assert describe(lens)["has_examples"]
    assert torch.isfinite(torch.from_numpy(lens.attention(input="data:0", t=0.5, layer=0, head=0)["map"])).all()


def test_data_check_reports_all_there_is(folder, capsys):
    expected = spoil(folder / "cat")
    write(folder / "dog" / "notes.txt", b"x")
    write(folder / "owl" / "large.jpg", encoded(Image.new("L", (40, 30), 77), "JPEG"))
    status, out, err = call(capsys, "data", "check", "pictures", "--json", "--out", "sheet.png")
    found = json.loads(out)
    assert status == 2
    assert f"{len(expected)} of {25 + len(expected)} files cannot be used" in err.splitlines()[-1]
    assert {entry["path"]: entry["reason"] for entry in found["rejected"]}.keys() == {
        f"cat/{name}" for name in expected
    }
    assert (found["usable"], found["bad"], found["captions"]) == (25, len(expected), 0)
    assert found["classes"] == {"cat": 8, "dog": 8, "owl": 9}
    assert found["sizes"] == {"8×8": 24, "30×40": 1}
    assert found["formats"] == {"PNG": 24, "JPEG": 1}
    assert found["modes"] == {"RGB": 24, "L": 1}
    assert found["other"] == {".txt": 1}
    assert sum(found["reasons"].values()) == len(expected)
    assert found["sheet"] == "sheet.png"
    status, out, _ = call(capsys, "data", "check", "pictures", "--bad-share", 1)
    assert status == 0
    assert "cat: 8  dog: 8  owl: 9" in out
    assert (folder.parent / "contact-sheet.png").is_file()


def test_the_size_of_a_turned_picture_is_as_it_is_held(in_tmp, capsys):
    """A camera stores 6×8 and says "a quarter turn": all are 8×6, and trained so."""
    turned = Image.Exif()
    for i, orientation in enumerate((1, 3, 5, 6, 7, 8)):
        turned[0x0112] = orientation
        stored = noise(i, (6, 8) if orientation > 4 else (8, 6))
        write(in_tmp / "p" / f"{i}.png", encoded(Image.fromarray(stored), exif=turned))
    status, out, _ = call(capsys, "data", "check", "p", "--json", "--out", "s.png")
    assert (status, json.loads(out)["sizes"]) == (0, {"8×6": 6})
    assert survey("p").size == (8, 6)
    write(in_tmp / "p" / "wide.png", png(9, (6, 8)))
    assert survey("p").size is None


def test_the_contact_sheet_shows_images_of_each_class(in_tmp, capsys):
    """Each class has a colour of its own, and each row of the sheet shows its own and no other."""
    colors = {"blue": (0, 0, 255), "lime": (0, 255, 0), "red": (255, 0, 0)}
    for name, color in colors.items():
        for i in range(3):
            write(in_tmp / "p" / name / f"{i}.png", encoded(Image.new("RGB", (5, 7), color)))
    assert call(capsys, "data", "check", "p", "--out", "s.png")[0] == 0
    sheet = np.asarray(Image.open("s.png").convert("RGB"))
    rows = [np.flatnonzero((sheet == color).all(2).any(1)) for color in colors.values()]
    assert rows[0].max() < rows[1].min() <= rows[1].max() < rows[2].min()
    assert all(len(row) == 64 for row in rows)
    counts = [int((sheet == color).all(2).sum()) for color in colors.values()]
    assert counts == [3 * 64 * 64] * 3


def test_one_image_and_a_name_with_a_space(in_tmp, capsys):
    write(in_tmp / "my pictures" / "a.png", png(0))
    status, _, err = call(capsys, "data", "check", "my pictures", "--out", "s.png")
    assert (status, err.splitlines()[-1].endswith("ditlab train images --data.path 'my pictures'")) == (0, True)
    status, _, err = call(capsys, *TRAIN, "--data.path", "my pictures", "--dry-run")
    assert (status, err.splitlines()[0]) == (0, "1 colour image of 8×8 without labels")


def test_a_cache_that_is_a_file_is_named(folder, capsys, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(write(folder.parent / "file", b"")))
    status, _, err = call(capsys, *TRAIN, "--data.path", "pictures")
    assert (status, err.splitlines()[-1].endswith("Not a directory; set DITLAB_CACHE to another folder")) == (2, True)


def test_flat_folders_train_without_labels(in_tmp, capsys):
    folder_of(in_tmp / "flat", (), channels=1)
    assert call(capsys, *TRAIN, "--data.path", "flat")[0] == 0
    run = ditlab.load("images")
    assert (run.num_classes, run.shape, run.config.sampling.guidance) == (None, (1, 8, 8), 1)


@pytest.mark.parametrize(
    ("window", "trained"), [(["0", "4095"], "0 4095"), (["auto"], "auto"), (["-0.5", "0.1"], "-0.5 0.1")]
)
@pytest.mark.parametrize("prefix", ["--", "--data."])  # names of its own, and those of training
def test_data_check_names_the_training_of_what_it_looked_at(in_tmp, capsys, window, trained, prefix):
    write("p/1.png", png(1))
    looking = [f"{prefix}channels", "1", f"{prefix}window", *window]
    status, _, err = call(capsys, "data", "check", "p", "--out", "s.png", *looking)
    assert status == 0
    assert f"ditlab train images --data.path p --data.channels 1 --data.window {trained}\n" in err
