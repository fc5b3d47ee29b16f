"""``ditlab import`` and ``ditlab export``, and what the other verbs make of an imported run."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import ditlab
from ditlab.interop.imports import import_checkpoint
from tests.cli.test_cli import call
from tests.interop.peers import random_vae
from tests.interop.test_exports import OWN, run_of
from tests.interop.test_imports import pipeline, saved, small


@pytest.fixture
def run(tmp_path):
    """An imported run of a small random DiT."""
    import_checkpoint(saved(tmp_path, small()), "facebook-dit", tmp_path / "run", heads=4)
    return tmp_path / "run"


def test_import_sample_decode(tmp_path, capsys):
    weights = saved(tmp_path, small())
    words = ("import", weights, "--format", "facebook-dit", "--heads", 4, "--out", tmp_path / "run", "--json")
    status, out, _ = call(capsys, *words)
    made = json.loads(out)
    assert status == 0
    assert made["parameters"] == sum(tensor.numel() for tensor in small().values())
    assert (made["shape"], made["num_classes"], made["latent_scale"]) == ([4, 8, 8], 10, 0.18215)
    status, _, err = call(capsys, *words)
    assert (status, err) == (2, f"ditlab: {tmp_path / 'run'} is there already: choose another --out\n")

    drawing = ("sample", tmp_path / "run", "--n", 5, "--steps", 2, "--solver", "ddim", "--seed", 3, "--json")
    status, out, _ = call(capsys, *drawing, "--out", tmp_path / "x.npz")
    assert (status, json.loads(out)["shape"]) == (0, [4, 8, 8])
    latents = np.load(tmp_path / "x.npz")["samples"]
    assert latents.dtype == np.float32
    assert np.abs(latents).max() > 1  # latents are not clamped

    status, _, err = call(capsys, *drawing, "--out", tmp_path / "x.png")
    assert status == 2
    assert "give --vae FOLDER" in err
    assert err.count("\n") == 1
    vae = random_vae(tmp_path / "vae")
    status, out, _ = call(capsys, *drawing, "--out", tmp_path / "x.png", "--vae", tmp_path / "vae")
    assert (status, json.loads(out)["shape"]) == (0, [3, 32, 32])
    assert Image.open(tmp_path / "x.png").mode == "RGB"
    assert call(capsys, *drawing, "--out", tmp_path / "y.npz", "--vae", tmp_path / "vae")[0] == 0
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(latents) / 0.18215).sample.clamp(-1, 1)
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["samples"], expected, atol=1e-5)


def test_a_pipeline_brings_its_own_autoencoder(tmp_path, capsys):
    folder = pipeline(tmp_path)
    assert call(capsys, "import", folder, "--format", "diffusers", "--out", tmp_path / "run")[0] == 0
    words = ("sample", tmp_path / "run", "--n", 2, "--steps", 2, "--out", tmp_path / "x.png")
    assert call(capsys, *words)[0] == 0
    assert Image.open(tmp_path / "x.png").mode == "RGB"
    assert call(capsys, "export", tmp_path / "run", "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    assert AutoencoderKL.from_pretrained(tmp_path / "out" / "vae").config.scaling_factor == 0.25


def test_autoencoders_that_do_not_fit(run, tmp_path, capsys):
    random_vae(tmp_path / "three", channels=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "VQModel"}')
    for name, words in (
        ("three", "has 3 latent channels"),
        ("empty", "no config.json"),
        ("broken", "cannot be read"),
        ("other", "describes a VQModel"),
    ):
        capsys.readouterr()
        status, _, err = call(capsys, "sample", run, "--n", 1, "--out", tmp_path / "x.png", "--vae", tmp_path / name)
        assert status == 2
        assert words in err
        assert err.count("\n") == 1


def test_verbs_that_need_data_say_that_there_are_none(run, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    status, _, err = call(capsys, "lab", run, "--export", tmp_path / "x.html")
    assert (status, err.count("\n")) == (2, 1)
    assert "--export needs training examples" in err
    for words in (("train", "--resume", run), ("train", "--resume", run, "--steps", 5), ("eval", run, "--n", 10)):
        capsys.readouterr()
        status, _, err = call(capsys, *words)
        assert status == 2
        assert "was trained elsewhere" in err
        assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_export_says_what_a_person_should_know(run, tmp_path, capsys):
    capsys.readouterr()
    status, out, err = call(capsys, "export", run, "--format", "diffusers", "--out", tmp_path / "pipe", "--json")
    assert (status, json.loads(out)["out"]) == (0, str(tmp_path / "pipe"))
    assert "no autoencoder" in err
    assert "downscale_freq_shift = 0" in err
    status, _, err = call(capsys, "export", run, "--format", "facebook-dit", "--out", tmp_path / "pipe")
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = call(capsys, "export", tmp_path / "none", "--format", "onnx", "--out", tmp_path / "x.onnx")
    assert (status, err.count("\n")) == (2, 1)


def test_formats_that_are_none(run, tmp_path, capsys):
    for words in (
        ("import", tmp_path / "weights.pt", "--format", "ckpt", "--out", tmp_path / "b"),
        ("import", tmp_path / "weights.pt", "--out", tmp_path / "b"),
        ("export", run, "--format", "pdf", "--out", tmp_path / "b"),
    ):
        status, _, err = call(capsys, *words)
        assert status == 2
        assert "--format" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("diffusers", ("sample", "--n", 1, "--out", "x.png", "--vae", "vae")),
        ("onnxscript", ("export", "--format", "onnx", "--out", "x.onnx")),
    ],
)
def test_a_missing_library_is_one_line(tmp_path, capsys, monkeypatch, library, words):
    run_of(tmp_path / "run", OWN)
    random_vae(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    for module in ("ditlab.data.latents.vae", "ditlab.interop.onnx_file"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == library else find(name))
    verb, *rest = words
    status, _, err = call(capsys, verb, "run", *rest)
    assert status == 2
    assert "pip install 'ditlab[" in err
    assert err.count("\n") == 1


def test_weights_alone_are_a_run_that_does_not_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ("--steps", 2, "--batch-size", 4, "--network.depth", 1, "--sampling.steps", 1, "--precision", "fp32")
    assert call(capsys, "train", "circles", *tiny)[0] == 0
    assert call(capsys, "export", "circles", "--format", "ditlab", "--out", "alone")[0] == 0
    names = ["ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(path.name for path in Path("alone/checkpoints/step-00000002").iterdir()) == names
    whole, alone = ditlab.load("circles"), ditlab.load("alone")
    assert torch.equal(whole.sample(2), alone.sample(2))
    status, _, err = call(capsys, "train", "--resume", "alone", "--steps", 3)
    assert status == 2
    assert "resume" in err
    assert "circles instead" in err
