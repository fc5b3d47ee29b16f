"""Images, small autoencoders and stores of latents for the tests."""

from ditlab.cli.main import main
from tests.images import folder_of
from tests.interop.peers import random_vae

WORDS = ["--data.path", "photos", "--data.image-size", "8", "--vae", "vae", "--batch-size", "3", "--shard-size", "5"]


def encode(*words, out="store"):
    """Encode ``photos`` with ``vae``, both in the working folder; the exit status."""
    return main(["latents", "encode", *WORDS, "--out", str(out), *map(str, words)])


def images_and_vae(root, each=6, **settings):
    """``photos`` of two classes and ``vae`` in a folder; gives the autoencoder."""
    folder_of(root / "photos", each=each)
    return random_vae(root / "vae", **settings)
