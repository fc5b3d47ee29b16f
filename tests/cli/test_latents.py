"""``ditlab latents encode`` and the recipes on latents, as a person meets them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditlab.cli.main import main
from ditlab.recipes import IMAGENET, RECIPES, imagenet256
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import load
from tests.images import folder_of
from tests.interop.peers import random_vae
from tests.latents import WORDS, images_and_vae

SMALL = ["--steps", "2", "--batch-size", "4", "--network.dim", "16", "--network.depth", "1", "--sampling.steps", "1"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with photos, a VAE, their store and a run on it."""
    root = tmp_path_factory.mktemp("cli")
    images_and_vae(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["latents", "encode", *WORDS]) == 0
        assert main(["train", "latents", "--data.path", "latents/photos", *SMALL]) == 0
    return root


@pytest.fixture
def here(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    return prepared


def call(capsys, *words):
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_encode_says_what_it_made_and_what_is_next(here, capsys):
    status, out, err = call(capsys, "latents", "encode", *WORDS, "--json")
    made = json.loads(out)
    assert status == 0
    assert (made["store"], made["count"], made["bad"]) == ("latents/photos", 12, 0)
    assert (made["shape"], made["classes"]) == ([4, 2, 2], 2)
    assert made["vae"]["name"] == str(here / "vae")
    assert "Next: ditlab train latents --data.path latents/photos" in err


def test_torchrun_shares_the_work(here):
    """Two processes of a torchrun, one report, the bytes of a single process."""
    words = [*WORDS, "--out", "shared", "--json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ditlab"]
    child = subprocess.run([*command, "latents", "encode", *words], capture_output=True, text=True, timeout=180)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["count"] == 12
    for file in Path("latents/photos").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (Path("shared") / file.relative_to("latents/photos")).read_bytes()


def test_a_run_on_latents_is_announced_sampled_decoded_and_measured(here, capsys):
    status, out, err = call(capsys, "train", "latents", "--data.path", "latents/photos", "--dry-run", "--json")
    assert status == 0
    assert f"12 latents of 4×2×2 in 2 classes, of the VAE {here}/vae" in err
    files = [file.stat().st_size for file in Path("latents/photos/shards").iterdir()]
    assert json.loads(out)["disk"]["latents_bytes"] == sum(files)
    status, out, _ = call(capsys, "sample", "latents", "--n", 3, "--out", "x.png", "--json")
    assert (status, json.loads(out)["shape"]) == (0, [3, 8, 8])
    status, out, _ = call(capsys, "sample", "latents", "--n", 3, "--out", "x.npz", "--json")
    assert (status, json.loads(out)["shape"]) == (0, [4, 2, 2])
    status, out, _ = call(capsys, "eval", "latents", "--n", 7, "--json")
    assert status == 0
    assert {"sliced_wasserstein", "sliced_wasserstein_floor"} <= set(json.loads(out))
    assert call(capsys, "eval", "latents", "--nll")[0] == 2


def test_a_run_outlives_its_store_and_its_autoencoder(here, tmp_path, capsys, monkeypatch):
    """It is sampled without either; what needs them says so in a line."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "runs", "runs")
    config = json.loads(Path("runs/latents/config.json").read_text())
    config["data"] |= {"path": str(tmp_path / "gone"), "vae": str(tmp_path / "no-vae")}
    Path("runs/latents/config.json").write_text(json.dumps(config))
    assert call(capsys, "sample", "latents", "--n", 3, "--out", "x.npz")[0] == 0
    for words, message in (
        (("sample", "latents", "--n", "3"), "no-vae is no folder of an autoencoder"),
        (("eval", "latents"), "there is no store of latents at"),
        (("train", "--resume", "latents", "--steps", "9"), "there is no store of latents at"),
    ):
        status, _, err = call(capsys, *words)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
    run = load("runs/latents")
    assert run.latent
    assert run.sample(2).shape == (2, 4, 2, 2)


def test_samples_are_decoded_with_the_stores_scale_and_shift(here):
    """As diffusers alone does it: z / scale + shift."""
    from ditlab.runs.decode import decoder

    random_vae(here / "shifted")
    words = ["--vae", "shifted", "--scale", "2", "--shift", "0.5", "--out", "shifted-store"]
    assert main(["latents", "encode", *WORDS, *words]) == 0
    assert main(["train", "latents", "--data.path", "shifted-store", *SMALL, "--name", "shifted"]) == 0
    run, vae = load("runs/shifted"), random_vae(here / "same")
    samples = run.sample(2, steps=1)
    with torch.no_grad():
        expected = vae.decode(samples / 2 + 0.5).sample.clamp(-1, 1)
    torch.testing.assert_close(decoder(run)(samples), expected)


def test_samples_are_not_decoded_by_a_changed_autoencoder_without_a_word(here, tmp_path, capsys, monkeypatch):
    """One line names both; none where it was asked for by name, or is the one that it was."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "runs", "runs")
    shutil.copytree(here / "vae", "vae")
    file = Path("runs/latents/config.json")
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"data": config["data"] | {"vae": str(tmp_path / "vae")}}))
    sample = ("sample", "latents", "--n", 1, "--out", "x.png", "--json")
    assert "autoencoder" not in call(capsys, *sample)[2]
    settings = json.loads(Path("vae/config.json").read_text())
    Path("vae/config.json").write_text(json.dumps(settings | {"act_fn": "relu"}))
    status, out, err = call(capsys, *sample)
    assert (status, json.loads(out)["n"]) == (0, 1)
    assert err.count("\n") == 1
    assert f"ditlab: the autoencoder in {tmp_path / 'vae'} is not the one that the latents were made by" in err
    assert f"was {config['data']['vae_digest'][:12]};" in err
    assert "autoencoder" not in call(capsys, *sample, "--vae", "vae")[2]


def test_the_lab_looks_at_latents(here):
    from ditlab.lab.lens.describe import describe
    from ditlab.lab.lens.lens import Lens

    lens = Lens(load("runs/latents"))
    about = describe(lens)
    assert (about["data"], about["has_examples"], about["shape"]) == ("latents", True, [4, 2, 2])
    assert lens.scenes.scene("data:3", 0.5, None).x0.shape == (1, 4, 2, 2)


def test_a_pipeline_takes_the_autoencoder_with_it(here):
    from ditlab.interop.exports import export_run

    words = ["--data.path", "latents/photos", "--process", "ddpm", "--network.gelu", "tanh", "--network.mlp-ratio", "4"]
    words += ["--network.positions", "sincos", "--network.time-features", "256", "--name", "ddpm"]
    assert main(["train", "latents", *words, *SMALL]) == 0
    config = RunFolder("runs/ddpm").read_config()
    assert config.process.first_term == "density"
    made = export_run("runs/ddpm", "diffusers", here / "pipeline")
    assert json.loads((made.path / "vae/config.json").read_text())["scaling_factor"] == 0.18215


WRONG = [
    (["latents", "decode"], "unknown word 'decode'"),
    ([*WORDS[:4], "--vae", "nothing"], "nothing is no folder of an autoencoder"),
    ([*WORDS, "--data.image-size", "10"], "use --data.image-size 8 8"),
    ([*WORDS, "--data.image-size", "8", "8", "8"], "one number for a square"),
    ([*WORDS, "--data.path", "nowhere"], "no such folder or file"),
    ([*WORDS, "--out", "photos/x"], "lies among the images"),
    ([*WORDS, "--out", "photos"], "lies among the images"),
    ([*WORDS, "--out", "vae"], "already exists and is not a store of latents: choose another --out"),
    ([*WORDS, "--out", "vae/config.json"], "already exists and is not a folder: choose another --out"),
    ([*WORDS, "--scale", "-1"], "scale=-1"),
    ([*WORDS, "--shift", "nan"], "shift=nan"),
    ([*WORDS, "--vae", "pickled"], "cannot be read"),
    (["train", "latents"], "name the latents: ditlab train latents --data.path STORE"),
    (["train", "imagenet256"], "--dry-run needs none"),
    (["train", "latents", "--data.path", "photos"], "is not a store of latents"),
    (["train", "latents", "--data.path", "begun"], "is not finished"),
    (["train", "imagenet256", "--dry-run", "--preset", "DiT-M/2"], "DiT-XL/2"),
    (["train", "imagenet256", "--dry-run", "--preset", "DiT-B/2", "--network", "unet"], "leave --network unet out"),
    (
        ["train", "imagenet256", "--data.path", "latents/photos", "--preset", "DiT-S/8"],
        "choose a patch size that divides 2",
    ),
    (["train", "circles", "--devices", "2"], "belong to --dry-run"),
    (["data", "check", "begun"], "no images in"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_input_ends_in_one_line(here, capsys, unchecked, words, message):
    Path("begun/.encoding").mkdir(parents=True, exist_ok=True)
    if not Path("pickled").exists():
        random_vae(here / "pickled").save_pretrained("pickled", safe_serialization=False)
        for file in Path("pickled").glob("*.safetensors"):
            file.unlink()
    status, _, err = call(capsys, *(["latents", "encode", *words] if words[0].startswith("--") else words))
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_a_process_that_is_not_the_first_says_what_is_wrong_with_it(here, capsys, monkeypatch):
    """Images that its machine lacks, for example: the processes of an encoding do not hear of one another."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = call(capsys, "latents", "encode", *WORDS, "--data.path", "nowhere")
    assert status == 2
    assert err.startswith("ditlab, process 1: ")
    assert "nowhere" in err
    assert "start with torchrun" in call(capsys, "sample", "nothing")[2]  # it cannot join, so nobody hears of it


@pytest.mark.parametrize("verb", ["latents", "data"])
@pytest.mark.parametrize("words", [(), ("--help",)])
def test_a_verb_alone_tells_its_usage(verb, words, capsys):
    status, out, _ = call(capsys, verb, *words)
    assert status == 0
    assert out.startswith(f"usage: ditlab {verb} ")


def test_the_hub_out_of_reach_is_one_line(here):
    child = subprocess.run(
        [sys.executable, "-m", "ditlab", "latents", "encode", *WORDS, "--vae", "owner/name"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 2
    assert child.stderr.count("\n") == 1
    assert "there is no folder owner/name, and it cannot be fetched from the Hub: " in child.stderr


def test_an_autoencoder_of_the_hub_is_pinned_to_the_commit_that_encoded(here, capsys, monkeypatch):
    """A snapshot in the Hub's cache stands for the download, which needs the network."""
    newest, asked = "a" * 40, []

    def snapshot(name, revision=None, **_):
        asked.append((name, revision))
        place = here / "hub" / "snapshots" / (revision or newest)
        if not place.exists():
            shutil.copytree(here / "vae", place / "vae")
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    words = [*WORDS[:4], "--vae", "owner/name", "--batch-size", "3"]
    assert call(capsys, "latents", "encode", *words, "--out", "pinned")[0] == 0
    name = f"owner/name@{newest}"
    assert json.loads(Path("pinned/index.json").read_text())["vae"]["name"] == name
    status, _, _ = call(capsys, "train", "latents", "--data.path", "pinned", *SMALL, "--name", "pinned")
    assert (status, json.loads(Path("runs/pinned/config.json").read_text())["data"]["vae"]) == (0, name)
    newest = "b" * 40
    assert call(capsys, "sample", "pinned", "--n", 2, "--steps", 2)[0] == 0
    assert asked == [("owner/name", None), ("owner/name", "a" * 40)]


def test_imagenet256_is_the_published_training():
    """Peebles & Xie 2023, section 4 and the authors' settings; the numbers are theirs."""
    config = imagenet256()
    network, process = config.network, config.process
    assert (network.dim, network.depth, network.heads, network.patch_size, network.mlp_ratio) == (1152, 28, 16, 2, 4)
    assert (network.learned_variance, network.positions, network.gelu, network.time_features) == (
        True,
        "sincos",
        "tanh",
        256,
    )
    assert (process.kind, process.steps, process.schedule, process.target) == ("ddpm", 1000, "linear", "eps")
    assert (process.condition_dropout, process.first_term) == (0.1, "density")
    assert (config.optimizer.kind, config.optimizer.beta2, config.optimizer.weight_decay) == ("adamw", 0.999, 0)
    assert (config.lr, config.warmup_steps, config.schedule) == (1e-4, 0, "constant")
    assert (config.batch_size, config.steps, config.ema_decay, config.precision) == (256, 7_000_000, 0.9999, "auto")
    assert config.data.flip
    assert config.data.latent_scale == 0.18215
    assert (IMAGENET.count, len(config.data.classes)) == (1_281_167, 1000)


def test_imagenet256_trains_smaller_presets_too(here, tmp_path, capsys):
    folder_of(tmp_path / "wide", each=2, size=(32, 32))
    words = ["--data.path", tmp_path / "wide", "--data.image-size", "32", "--vae", "vae", "--out", tmp_path / "store"]
    assert call(capsys, "latents", "encode", *words)[0] == 0
    few = ["--steps", "1", "--batch-size", "2", "--sampling.steps", "1", "--network.depth", "1", "--name", "preset"]
    few += ["--sampling.solver", "ddim"]
    assert call(capsys, "train", "imagenet256", "--data.path", tmp_path / "store", "--preset", "DiT-S/8", *few)[0] == 0
    config = RunFolder("runs/preset").read_config()
    assert (config.network.dim, config.network.patch_size, config.network.depth) == (384, 8, 1)
    assert load("runs/preset").sample(1, steps=1, solver="ddim").shape == (1, 4, 8, 8)


@pytest.mark.parametrize("process", ["flow", "meanflow"])
def test_imagenet256_swaps_its_process(here, process):
    """For one that has no variance to learn, nor DDPM's solver."""
    few = ["--steps", "1", "--batch-size", "2", "--network.depth", "1", "--name", process, "--sampling.steps", "1"]
    few += ["--network.patch-size", "1", "--preset", "DiT-S/2", "--network.dim", "32", "--network.heads", "2"]
    assert main(["train", "imagenet256", "--data.path", "latents/photos", "--process", process, *few]) == 0
    assert RunFolder(f"runs/{process}").read_config().network.learned_variance is False


def test_help_needs_no_store(in_tmp, capsys):
    for recipe in ("latents", "imagenet256"):
        with pytest.raises(SystemExit):
            main(["train", recipe, "--help"])
        assert "--preset" in capsys.readouterr().out
    assert set(RECIPES) >= {"circles", "points", "digits", "images", "latents", "imagenet256"}
