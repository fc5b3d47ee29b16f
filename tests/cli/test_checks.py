"""What one verb checks, its siblings check too; and samples can be had by class name, as files, bytes and in bf16."""

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditlab
from ditlab.cli.main import main
from ditlab.core import disk
from ditlab.core.errors import InputError
from ditlab.evaluation.evaluate import evaluate
from ditlab.lab import Lens
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import write_checkpoint
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import network_facts
from ditlab.training.optim import learning_rate_factor, scheduled
from tests.cli.test_cli import SMALL, call
from tests.images import folder_of

FEW = [*SMALL, "--steps", "4", "--warmup-steps", "2"]
UNDROPPED = ["--process.condition-dropout", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Digits whose labels were never dropped, and images of classes whose names are numbers, in another order."""
    folder = tmp_path_factory.mktemp("work")
    folder_of(folder / "pictures", ("1", "10", "2", "cat"), each=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "digits", *FEW, *UNDROPPED]) == 0
        assert main(["train", "images", "--data.path", "pictures", *FEW]) == 0
        assert main(["train", "points", "--network", "mlp", "--steps", "2", "--sampling.steps", "2"]) == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """A copy of the runs and the images, to change."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


# ---- samples that are no numbers


def broken(value):
    """A run whose network gives that number."""
    run = ditlab.load("digits")
    weights = run.process.network.state_dict()
    weights["final.linear.bias"] = torch.full_like(weights["final.linear.bias"], value)
    folder = RunFolder("runs/broken")
    folder.write_config(run.config)
    parts = {"model": weights, "ema": weights, "optimizer": {}}
    write_checkpoint(folder.checkpoints, 1, parts, network_facts(run.config))


@pytest.mark.parametrize("value", [float("nan"), 3e38], ids=["nan", "infinite"])
def test_what_is_no_number_is_never_written_as_a_picture(copy, capsys, value):
    broken(value)
    for out in ("a.png", "a.npz", "a/"):
        status, said, err = call(capsys, "sample", "broken", "--n", 4, "--steps", 2, "--out", out)
        assert (status, said, err.count("\n")) == (2, "", 1)
        assert "some samples are not finite numbers: was runs/broken trained to its end?" in err
        assert not Path(out).exists()
    status, _, err = call(capsys, "eval", "broken", "--n", 100, "--steps", 2)
    assert (status, err.count("\n")) == (2, 1)
    with pytest.raises(InputError, match="not finite numbers"):
        ditlab.load("broken").sample(2, steps=2)


# ---- guidance where no label was ever dropped


def test_guidance_by_a_label_that_was_never_dropped_is_refused_by_every_verb(here, capsys, tmp_path):
    for verb in ("sample", "eval"):
        status, out, err = call(capsys, verb, "digits", "--n", 100, "--guidance", 3)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "never learned what to guide away from: drop --guidance" in err
    run = ditlab.load("digits")
    with pytest.raises(InputError, match="never trained"):
        run.sample(2, steps=2, guidance=3.0)
    with pytest.raises(InputError, match="never trained"):
        evaluate(run, 100, steps=2, guidance=3.0)
    with pytest.raises(InputError, match="never trained"):
        Lens(Path("runs/digits")).trajectory(n=1, steps=2, guidance=3.0)
    words = ("sample", "digits", "--n", 2, "--steps", 2, "--out", tmp_path / "a.npz", "--json")
    _, out, _ = call(capsys, *words)
    assert json.loads(out)["guidance"] == 1  # the recipe's would be 2
    figures = json.loads(call(capsys, *words, "--guidance", 2, "--guide", "digits", "--weights", "raw")[1] or "{}")
    assert not figures  # a run cannot guide itself, and another may


def test_a_run_without_dropped_labels_does_not_guide_by_itself(here, copy, capsys):
    """Neither as the recipe says, nor as a configuration of before says, unless it is asked for."""
    assert RunFolder("runs/digits").read_config().sampling.guidance == 1
    file = Path("runs/digits/config.json")
    old = json.loads(file.read_text())
    old["sampling"] |= {"guidance": 2.0, "guidance_rescale": 0.5}
    file.write_text(json.dumps(old))
    assert ditlab.load("digits").config.sampling.guidance == 1
    assert call(capsys, "sample", "digits", "--n", 2, "--steps", 2)[0] == 0
    words = ["train", "digits", "--name", "new", *FEW, *UNDROPPED, "--sampling.guidance", "2"]
    status, _, err = call(capsys, *words)
    assert (status, "drop one of the two" in err, Path("runs/new").exists()) == (2, True, False)


# ---- classes by name, folders, bytes, precision


def test_a_class_goes_by_its_name_before_its_number(here, capsys, tmp_path):
    def drawn(label):
        words = ("sample", "images", "--n", 2, "--steps", 2, "--label", label, "--out", tmp_path / "a.npz", "--json")
        status, out, _ = call(capsys, *words)
        with np.load(tmp_path / "a.npz") as arrays:
            return status, arrays["labels"].tolist(), json.loads(out)["label"]

    assert drawn("cat") == (0, [3, 3], "cat")
    assert drawn("2") == (0, [2, 2], "2")
    assert drawn("10") == (0, [1, 1], "10")
    assert drawn("0") == (0, [0, 0], "1")  # no class is called so


@pytest.mark.parametrize("label", ["dog", "4", "-1", "٣", "1" * 5000])
def test_an_unknown_class_is_answered_by_those_that_are_there(here, capsys, label):
    status, _, err = call(capsys, "sample", "images", f"--label={label}")
    assert (status, "run from 0 to 3" in err, "0 1, 1 10, 2 2, 3 cat" in err) == (2, True, True)


def test_help_and_samples_say_the_classes(here, capsys, tmp_path):
    status, out, _ = call(capsys, "sample", "images", "--help")
    assert (status, out.splitlines()[-1]) == (0, "Classes of images: 0 1, 1 10, 2 2, 3 cat")
    assert "Classes" not in call(capsys, "sample", "--help")[1]
    assert "Classes" not in call(capsys, "sample", "points", "--help")[1]
    _, out, _ = call(capsys, "sample", "images", "--n", 4, "--steps", 2, "--out", tmp_path / "a.png")
    assert re.search(r"classes +0 1, 1 10, 2 2, 3 cat", out)


def test_a_folder_gets_a_picture_of_each_sample(here, capsys, tmp_path):
    words = ("sample", "images", "--n", 3, "--steps", 2)
    assert call(capsys, *words, "--out", f"{tmp_path}/new/")[0] == 0
    assert call(capsys, *words, "--out", tmp_path / "a.npz", "--dtype", "uint8")[0] == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert (arrays["samples"].dtype, arrays["samples"].shape) == (np.uint8, (3, 3, 8, 8))
        for i, pixels in enumerate(arrays["samples"]):
            picture = np.asarray(Image.open(tmp_path / f"new/{i:06d}.png"))
            np.testing.assert_array_equal(picture, pixels.transpose(1, 2, 0))
    assert len(list((tmp_path / "new").iterdir())) == 3
    floats = ditlab.load("images").sample(3, steps=2, guidance=2.0)
    np.testing.assert_array_equal(np.rint((floats.numpy() + 1) * 127.5), np.load(tmp_path / "a.npz")["samples"])
    status, _, err = call(capsys, *words, "--out", f"{tmp_path}/new/")
    assert (status, "is not empty: name a new folder" in err) == (2, True)
    (tmp_path / "there").mkdir()
    assert call(capsys, "sample", "digits", "--n", 1, "--steps", 2, "--out", tmp_path / "there")[0] == 0
    assert Image.open(tmp_path / "there/000000.png").mode == "L"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images", "--out", "a.png", "--dtype", "uint8"], "--out FILE.npz"),
        (["points", "--out", "points/"], "are not images"),
        (["points", "--out", "a.npz", "--dtype", "uint8"], "are not images"),
    ],
)
def test_what_is_no_image_is_not_written_as_one(here, capsys, words, message):
    status, _, err = call(capsys, "sample", *words, "--n", 2, "--steps", 2)
    assert (status, message in err, Path("points").exists(), Path("a.npz").exists()) == (2, True, False, False)


def test_samples_of_less_precision_are_near(here, capsys, tmp_path):
    drawn = {}
    for precision in ("fp32", "bf16"):
        words = ("sample", "digits", "--n", 2, "--steps", 2, "--out", tmp_path / "a.npz", "--precision", precision)
        assert json.loads(call(capsys, *words, "--json")[1])["precision"] == precision
        with np.load(tmp_path / "a.npz") as arrays:
            drawn[precision] = arrays["samples"]
    assert drawn["bf16"].dtype == np.float32
    assert 0 < np.abs(drawn["fp32"] - drawn["bf16"]).max() < 0.1


# ---- going on


def test_a_finished_cosine_does_not_jump_without_a_word(copy, capsys):
    status, _, err = call(capsys, "train", "--resume", "digits", "--steps", 12)
    assert (status, "the learning rate jumps from " in err, "--rewarm" in err) == (0, True, True)
    status, _, err = call(capsys, "train", "--resume", "digits", "--steps", 13)  # here it still falls
    assert (status, "jumps" in err) == (0, False)
    assert call(capsys, "train", "--resume", "digits", "--rewarm")[0] == 2  # no steps are left
    status, _, err = call(capsys, "train", "--resume", "digits", "--steps", 23, "--rewarm")
    assert (status, "jumps" in err) == (0, False)
    rates = {line["step"]: line["lr"] for line in RunFolder("runs/digits").read_metrics() if "lr" in line}
    config = RunFolder("runs/digits").read_config()
    assert config.rewarmed_at == 13
    for step in (14, 16, 20, 23):  # a training of ten steps from there
        assert rates[step] == pytest.approx(config.lr * learning_rate_factor(step - 14, 10, 2))
    assert scheduled(config, 5) < 1  # steps of before, where a damaged checkpoint makes them anew


def test_data_that_have_moved_are_found_by_their_fingerprint(copy, capsys):
    words = ("train", "--resume", "images", "--data.path")
    before = RunFolder("runs/images").read_config().data.path
    folder_of(Path("others"), ("1", "10", "2", "cat"), each=4)
    status, _, err = call(capsys, *words, "others", "--steps", 6)
    assert (status, "are not those that this run was trained on" in err) == (2, True)
    assert RunFolder("runs/images").read_config().data.path == before
    Path("pictures").rename("moved")
    status, _, err = call(capsys, *words, "moved")  # though all its steps are done: eval looks for them, too
    assert (status, RunFolder("runs/images").read_config().data.path) == (0, str(Path("moved").absolute()))
    assert call(capsys, "train", "--resume", "images", "--steps", 6)[0] == 0
    assert call(capsys, *words, "nowhere")[0] == 2
    assert call(capsys, "train", "--resume", "digits", "--data.path", "moved")[0] == 2
    Path("moved").rename("gone")
    status, _, err = call(capsys, "train", "--resume", "images", "--steps", 8)
    assert (status, "--data.path PATH" in err) == (2, True)


# ---- a batch that processes share


@pytest.mark.parametrize(("processes", "expected"), [(3, 12), (7, 14), (100, 100)])
def test_a_batch_of_the_recipe_gives_way_to_the_processes(here, capsys, processes, expected):
    words = ("train", "images", "--data.path", "pictures", "--dry-run", "--json", "--devices", processes)
    status, out, err = call(capsys, *words)
    costs = json.loads(out)
    assert (status, costs["samples"] // costs["steps"]) == (0, expected)
    assert ("rather than 12" in err) == (expected != 12)
    if expected != 12:
        status, _, err = call(capsys, *words, "--batch-size", 12)
        assert (status, "--batch-size 12 cannot be divided" in err) == (2, True)


# ---- a home that cannot be written


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_home_that_cannot_be_written_is_answered_by_the_way_out(here, capsys, monkeypatch, tmp_path, number):
    """Whatever keeps something there: images, and a classifier of them."""
    real = Path.mkdir

    def forbidden(self, *words, **options):
        if str(self).startswith(str(tmp_path / "home")):
            raise OSError(number, "may not be written", str(self))
        real(self, *words, **options)

    monkeypatch.setattr(Path, "mkdir", forbidden)
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "home"))
    for words in (["train", "images", "--data.path", "pictures", "--name", "x", *FEW], ["eval", "images", "--n", "4"]):
        status, _, err = call(capsys, *words)
        assert status == 2
        assert "set DITLAB_CACHE to another folder" in err.splitlines()[-1]


def test_a_cache_that_has_what_is_needed_need_not_be_written(here, monkeypatch):
    def refused(operation, path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    one, other = (build_dataset(RunFolder("runs/images").read_config()) for _ in range(2))
    fingerprint = one.prepare()
    monkeypatch.setattr(disk, "before", refused)
    assert other.prepare() == fingerprint
