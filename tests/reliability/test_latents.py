"""Encoding that is shared and killed, and ends as one process that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from ditlab.cli.main import main
from ditlab.core import disk
from ditlab.data.latents.encode import Encoding
from tests.latents import encode, images_and_vae
from tests.reliability.faults import At, die, ended, full, in_a_child, recorded, tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with ``photos``, ``vae`` and a store of 24 images in five shards, made by one process."""
    root = tmp_path_factory.mktemp("encoded")
    images_and_vae(root, each=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert encode() == 0
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    return root


@pytest.fixture
def here(whole, tmp_path, monkeypatch):
    """A folder of one's own with the same images and autoencoder."""
    for name in ("photos", "vae"):
        (tmp_path / name).symlink_to(whole / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(die_at=None):
    """A fork that encodes ``store``, notes each shard that it begins in ``log``, and perhaps kills itself."""
    child = os.fork()
    if child:
        return child
    sys.stderr = Path("err").open("a")  # noqa: SIM115
    plain = Encoding._encode

    def noted(self, shard):
        with Path("log").open("a") as log:
            log.write(f"{shard}\n")
        plain(self, shard)

    Encoding._encode = noted
    if die_at is not None:
        disk.before = At(die_at, die)
    status = encode("--vae", Path("vae").resolve(), "--data.path", Path("photos").resolve())
    sys.stderr.flush()
    os._exit(status)


@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_latents_by_two_processes_and_kills(whole, here, kills):
    """Both killed, at random operations on the disk and at random moments; then finished by two."""
    chance = random.Random(kills)
    killed = 0
    while killed < kills:
        pair = [started(die_at=chance.randrange(14)), started()]
        time.sleep(chance.random() * 0.25)
        os.kill(pair[1], signal.SIGKILL)
        killed += [ended(child) for child in pair].count(-signal.SIGKILL)
        if (here / "store" / "index.json").exists() and killed < kills:
            shutil.rmtree(here / "store")
    assert [ended(child) for child in [started(), started()]] == [0, 0], Path("err").read_text()
    assert tree(here / "store") == tree(whole / "store")


def test_two_processes_never_encode_the_same(whole, here):
    """Of three that begin together each shard has one, and the store is that of a single process."""
    assert [ended(child) for child in [started(), started(), started()]] == [0, 0, 0], Path("err").read_text()
    assert sorted(Path("log").read_text().split()) == ["0", "1", "2", "3", "4"]
    assert tree(here / "store") == tree(whole / "store")


def test_a_process_takes_over_what_a_dead_one_held(whole, here):
    """The second waits while the first is stopped inside a shard, and ends alone when that one is killed."""
    first = started()
    deadline = time.monotonic() + 30
    while not Path("log").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)
    second = started()
    while len(list(Path("store/.encoding").glob("[0-9]*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert os.waitpid(second, os.WNOHANG) == (0, 0)
    assert not Path("store/index.json").exists()
    os.kill(first, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0
    assert "waiting for 1 shard " in Path("err").read_text()
    assert tree(here / "store") == tree(whole / "store")


def small():
    """Encode three of the images."""
    return encode("--data.path", "few", out="small")


def test_latents_stopped_at_every_operation(here):
    """Killed before each operation on the disk, or the disk full before each write: the same bytes afterwards."""
    shutil.copytree(here / "photos" / "a", here / "few")
    for file in sorted(here.glob("few/*"))[3:]:
        file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        operations = recorded(patch, small)
    expected = tree(here / "small")
    assert {operation for operation, _ in operations} >= {"write", "fsync", "rename", "delete"}
    for n, (operation, _) in enumerate(operations):
        for act, status in ((die, -signal.SIGKILL), (full, 1))[: 2 if operation == "write" else 1]:
            shutil.rmtree(here / "small")

            def stopped(n=n, act=act):
                disk.before = At(n, act)
                os._exit(small())

            assert in_a_child(stopped) == status, operations[n]
            assert small() == 0
            assert tree(here / "small") == expected, operations[n]


def test_training_on_latents_goes_on_with_the_same_bytes(whole, here):
    """From the checkpoint before the end, with other numbers of workers: as if it had not been cut."""
    shutil.copytree(whole / "store", here / "store")
    words = ["--data.path", "store", "--steps", "6", "--batch-size", "5", "--checkpoint-every", "3", "--data.flip"]
    words += ["--network.dim", "16", "--network.depth", "1", "--sampling.steps", "1", "--precision", "fp32"]
    assert main(["train", "latents", *words, "--name", "whole"]) == 0
    shutil.copytree("runs/whole", "runs/cut")
    shutil.rmtree("runs/cut/checkpoints/step-00000006")
    Path("runs/cut/checkpoints/LATEST").write_text("step-00000003\n")
    assert main(["train", "--resume", "cut", "--workers", "2"]) == 0
    a, b = (tree(here / "runs" / name / "checkpoints/step-00000006") for name in ("whole", "cut"))
    assert a.keys() == b.keys()
    assert all(a[name] == b[name] for name in a if name.endswith(".safetensors"))


@pytest.mark.parametrize("change", ["vae_digest", "latent_scale", "shards"])
def test_a_run_is_not_resumed_on_other_latents(whole, here, capsys, change):
    """A store of another autoencoder, another scale or other images is refused in a line, and nothing is lost."""
    shutil.copytree(whole / "store", here / "store")
    words = [
        "--data.path",
        "store",
        "--steps",
        "2",
        "--batch-size",
        "5",
        "--network.dim",
        "16",
        "--sampling.steps",
        "1",
    ]
    assert main(["train", "latents", *words]) == 0
    file = Path("store/index.json")
    index = json.loads(file.read_text())
    if change == "vae_digest":
        index["vae"] |= {"name": "another-vae", "digest": "1" * 64}
    elif change == "latent_scale":
        index["latent_scale"] = 0.5
    else:
        index["shards"][0]["sha256"] = "1" * 64
    file.write_text(json.dumps(index))
    before = tree(here / "runs/latents/checkpoints")
    capsys.readouterr()
    assert main(["train", "--resume", "latents", "--steps", "4"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    expected = {
        "vae_digest": f"latents of the VAE was {here}",
        "latent_scale": "the scale was 0.18215 and is 0.5",
        "shards": "the data are not those that this run was trained on",
    }
    assert expected[change].replace(str(here), "") in err.replace(str(whole), "").replace(str(here), "")
    assert ("another-vae" in err) == (change == "vae_digest")
    assert tree(here / "runs/latents/checkpoints") == before


def test_the_doctor_of_a_run_whose_latents_are_gone(whole, here, capsys):
    """The store is named where it is missing; what needs none is told."""
    shutil.copytree(whole / "store", here / "store")
    words = ["--data.path", "store", "--steps", "2", "--batch-size", "5", "--network.dim", "16"]
    assert main(["train", "latents", *words, "--sampling.steps", "1", "--name", "a"]) == 0
    shutil.rmtree("store")
    capsys.readouterr()
    assert main(["doctor", "a", "--n", "64", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["loss by time"]["reason"].startswith("there is no store of latents")
    assert checks["averaged weights"]["verdict"] != "unknown"
