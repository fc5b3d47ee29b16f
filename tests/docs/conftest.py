"""What the pages' commands find in the folder they are run in."""

import io
import os
import shutil
import sys
import tarfile
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from ditlab.cli.main import main
from ditlab.core.registry import REGISTRIES
from ditlab.lab import export
from tests.docs.commands import FEW
from tests.images import folder_of, png
from tests.interop.peers import facebook_state, random_vae

TINY = [word for pair in FEW.items() for word in pair]
RUNS = {
    "demo": ["circles"],
    "digits": ["digits"],
    "in-context": ["digits", "--network.conditioning", "in-context"],
    "cross-attention": ["digits", "--network.conditioning", "cross-attention"],
}


def tables():
    """The same kind of images in a parquet file, and in a folder of tar files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [png(i, (32, 32)) for i in range(8)]
    rows = [{"image": {"bytes": image, "path": None}, "label": i % 2} for i, image in enumerate(images)]
    pq.write_table(pa.Table.from_pylist(rows), "images.parquet")
    Path("shards").mkdir()
    with tarfile.open("shards/0.tar", "w") as stream:
        for i, image in enumerate(images):
            for suffix, body in (("png", image), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(body)
                stream.addfile(member, io.BytesIO(body))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Runs of four steps, images and an autoencoder of random weights, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("world")
    with chdir(folder):
        for name, words in RUNS.items():
            assert main(["train", *words, "--name", name, *TINY]) == 0
        for name in ("circles", "big"):
            shutil.copytree("runs/demo", f"runs/{name}")
        folder_of("photos", classes=("cats", "dogs"), each=8, size=(32, 32))
        folder_of("photos-test", classes=("cats", "dogs"), each=8, size=(32, 32))
        folder_of("IMAGENET/train", each=2)
        Path("mine.py").write_text("def embed(images):\n    return images.flatten(1)[:, :8]\n")
        shutil.copytree(Path(__file__).parents[2] / "examples", "examples")
        tables()
        for name in ("VAE", "sd-vae-ft-mse", "sd-vae-ft-ema"):
            random_vae(name)
        torch.save(facebook_state(depth=1, rows=11, size=8, dim=32), "small.pt")
        images = ["--data.path", "photos", "--data.image-size", "32", "--vae", "VAE"]
        assert main(["latents", "encode", *images, "--out", "latents/imagenet256"]) == 0
        assert main(["train", "latents", "--data.path", "latents/imagenet256", *TINY]) == 0
    return folder


@pytest.fixture
def folder(world, tmp_path, monkeypatch, unchecked):
    """A copy of the world to work in; what a page registers is forgotten after it."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "COLUMNS", "120")
    monkeypatch.setattr(export, "INPUTS", export.INPUTS[:1])  # of a page in one file
    monkeypatch.setattr(export, "TIMES", export.TIMES[:2])
    known = [(names, dict(names.parts)) for names in REGISTRIES.values()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield tmp_path
    for names, before in known:
        names.parts.clear()
        names.parts.update(before)
    sys.modules.pop("plugin", None)
