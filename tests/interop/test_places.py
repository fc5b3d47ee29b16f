"""Results appear whole under their name or not at all, and what is written is written once and for everyone."""

import json
import resource
import signal

import pytest
import torch
from diffusers import DDIMScheduler

from ditlab.cli.main import guarded, main
from ditlab.config import DDPMConfig
from ditlab.core.disk import made_whole
from ditlab.core.errors import InputError
from ditlab.diffusion.grids import sampling_times
from ditlab.diffusion.paths import DiscreteVP, named_betas
from ditlab.interop.diffusers_scheduler import read_scheduler
from ditlab.interop.exports import export_run
from ditlab.interop.imports import import_checkpoint
from tests.interop.peers import random_vae
from tests.interop.test_exports import OWN, run_of
from tests.interop.test_imports import saved, small


@pytest.mark.parametrize("end", [KeyboardInterrupt, InputError, OSError])
def test_nothing_is_left_of_what_was_not_finished(tmp_path, end):
    def write():
        with made_whole(tmp_path / "a" / "b" / "out") as path:
            path.mkdir()
            raise end

    with pytest.raises(end):
        write()
    assert list(tmp_path.iterdir()) == []
    with made_whole(tmp_path / "a" / "b" / "out") as path:
        path.mkdir()
    assert (tmp_path / "a" / "b" / "out").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_sigterm_cleans_up_and_is_143(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def verb(_):
        with made_whole(tmp_path / "out") as path:
            path.mkdir()
            signal.raise_signal(signal.SIGTERM)
        return 0

    assert guarded(verb, []) == 143
    assert capsys.readouterr().err == "ditlab: terminated\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_places_that_cannot_be(tmp_path, capsys):
    weights = saved(tmp_path, small())
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for out, words in (
        (tmp_path / "link", "is a symbolic link"),
        (tmp_path / "file" / "out", f"cannot use {tmp_path}/file/out: Not a directory"),
        ("/proc/x", "cannot use /proc/x: No such file"),
        ("a\0b", "is not a valid file name"),
        (tmp_path / ("n" * 256), "File name too long"),
        (tmp_path / "new" / ("n" * 256), "File name too long"),
    ):
        words_of = (
            ["import", str(weights), "--format", "sit", "--heads", "4", "--out", str(out)],
            ["export", str(run_folder(tmp_path.parent / "made")), "--format", "facebook-dit", "--out", str(out)],
        )
        for arguments in words_of:
            capsys.readouterr()
            assert main(arguments) == 2
            err = capsys.readouterr().err
            assert words in err
            assert ".tmp" not in err
            assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def run_folder(folder):
    if not folder.exists():
        run_of(folder, OWN)
    return folder


@pytest.mark.parametrize("format", ["facebook-dit", "diffusers"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, capsys, format):
    run_of(tmp_path / "run", OWN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        status = main(["export", str(tmp_path / "run"), "--format", format, "--out", str(tmp_path / "new" / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert "disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_equal_weights_are_once_on_the_disk_and_as_readable_as_the_rest(tmp_path):
    import_checkpoint(saved(tmp_path, small()), "facebook-dit", tmp_path / "run", heads=4)
    files = {path.name: path.stat() for path in (tmp_path / "run/checkpoints/step-00000000").iterdir()}
    assert files["ema.safetensors"].st_ino == files["model.safetensors"].st_ino
    assert len({file.st_mode for file in files.values()}) == 1


def test_an_autoencoder_for_other_latents_is_refused_before_anything_is_written(tmp_path):
    run_of(tmp_path / "run", OWN)
    random_vae(tmp_path / "vae", channels=16)
    with pytest.raises(InputError, match=r"has 16 latent channels; .* has 4$"):
        export_run(tmp_path / "run", "diffusers", tmp_path / "new" / "out", vae=tmp_path / "vae")
    assert not (tmp_path / "new").exists()


def test_a_network_that_ignores_the_time_is_exported_without_a_word_on_frequencies(tmp_path):
    state = small() | {"t_embedder.mlp.0.weight": torch.zeros(32, 256)}
    import_checkpoint(saved(tmp_path, state), "facebook-dit", tmp_path / "run", heads=4)
    notes = export_run(tmp_path / "run", "diffusers", tmp_path / "out").notes
    assert not [note for note in notes if "frequencies" in note]


def test_import_says_what_drawing_costs(tmp_path, capsys):
    arguments = ["import", str(saved(tmp_path, small())), "--format", "facebook-dit", "--heads", "4"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "--n 4 --steps 50 --out x.npz (published: 250 guided steps)\n" in capsys.readouterr().err


# ---- schedulers


def scheduler(tmp_path, **settings):
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler", "clip_sample": False, **settings}))
    return read_scheduler(file)


@pytest.mark.parametrize(
    ("spacing", "published", "noted"),
    [("leading", 1000, 0), ("leading", 999, 0), ("trailing", 1000, 0), ("trailing", 999, 1), ("linspace", 1000, 1)],
)
def test_spacing_is_taken_where_it_can_be(tmp_path, spacing, published, noted):
    _, sampling, notes = scheduler(
        tmp_path, timestep_spacing=spacing, num_train_timesteps=published, **betas(published)
    )
    assert len(notes) == noted
    times = sampling_times(sampling.grid, DiscreteVP(named_betas("linear", published)), 1.0, sampling.steps)[:-1]
    theirs = DDIMScheduler(num_train_timesteps=published, timestep_spacing=spacing)
    theirs.set_timesteps(sampling.steps)
    if not noted:
        torch.testing.assert_close(times * published - 1, theirs.timesteps.double(), rtol=0, atol=1e-6)


def betas(published):
    return {"beta_start": 0.1 / published, "beta_end": 20 / published}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_sample": True}, ["clip_sample is True"]),
        ({"thresholding": True}, ["thresholding is True"]),
        ({"steps_offset": 1, "set_alpha_to_one": False}, ["steps_offset is 1", "set_alpha_to_one is False"]),
        ({"_class_name": "DDPMScheduler"}, ["--solver ancestral"]),
        ({}, []),
    ],
)
def test_how_samples_are_drawn_otherwise_is_noted(tmp_path, settings, words):
    process, _, notes = scheduler(tmp_path, **settings)
    assert process == DDPMConfig()
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_few_published_steps_are_not_exceeded(tmp_path):
    assert scheduler(tmp_path, num_train_timesteps=30, **betas(30))[1].steps == 30
