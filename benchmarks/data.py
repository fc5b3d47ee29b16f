"""Does a training step ever wait for its data? Compares each kind of data with the step it feeds.

    python benchmarks/data.py               three minutes on two CPU cores

The data are made in a temporary folder: 1,000 images of 64×64 pixels in ten class folders, as PNG, trained at 32×32,
and a store of their latents, 16×16×4 values each. ``batch_ms`` is the time the training thread spends on a batch of the
recipe's size, and ``step_ms`` that of a whole step, batch included. ``share``, the median over rounds of their ratio,
is the most that preparing batches in workers can save. ``wait_ms`` is how long the loop waits for a batch that one
worker prepared ahead, and ``prepare_s`` the time of the preparation before the first step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ditlab.bench.machine import as_result, write_result
from ditlab.bench.rounds import interleaved, median, ratios
from ditlab.bench.training import as_trained
from ditlab.cli.main import main as main_verb
from ditlab.config import Config
from ditlab.data.dataset import Dataset, Prepared
from ditlab.data.images.survey import survey
from ditlab.data.latents.survey import survey_store
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.training.loader import batches
from ditlab.training.loop import TrainState, train
from tests.interop.peers import random_vae

OUT = Path(__file__).parent / "results" / "data.json"
CPU = torch.device("cpu")
IMAGES, CLASSES, SIDE, TRAINED_SIDE = 1000, 10, 64, 32


def make_images(folder: Path) -> None:
    """Noise in ten class folders."""
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        home = folder / f"class-{i % CLASSES}"
        home.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"{i:05}.png")


def make_latents(folder: Path) -> None:
    """Encode the images with a small autoencoder of random weights."""
    random_vae(folder / "vae")
    words = {"--data.path": "images", "--vae": "vae", "--out": "store"}
    places = [word for option, name in words.items() for word in (option, str(folder / name))]
    status = main_verb(["latents", "encode", "--data.image-size", str(SIDE), *places])
    assert status == 0, "the latents could not be encoded"


def configurations(folder: Path) -> Iterator[tuple[str, Config]]:
    """For each kind of data, the recipe that trains on it."""
    make_images(folder / "images")
    yield "circles", RECIPES["circles"]()
    yield "digits", RECIPES["digits"]()
    yield "points", RECIPES["points"]()
    yield "images 32×32", RECIPES["images"](survey(str(folder / "images")), (TRAINED_SIDE,))
    make_latents(folder)
    yield "latents 16×16×4", RECIPES["latents"](survey_store(str(folder / "store")))


def prepared(config: Config) -> tuple[Dataset, float]:
    """The prepared data, and the seconds of the preparation."""
    dataset, begun = build_dataset(config), time.perf_counter()
    if isinstance(dataset, Prepared):
        dataset.prepare()
    return dataset, time.perf_counter() - begun


def feeding(config: Config, rounds: int, turn: float) -> dict[str, Any]:
    """The time of a batch compared with that of a step."""
    config = config.model_copy(update={"device": "cpu"})
    dataset, preparing = prepared(config)
    config = as_trained(config, dataset).model_copy(update={"steps": 10**7, "average_every": 10**7})
    loop, own = train(TrainState(config, dataset), dataset), batches(dataset, config, 0)
    measured = interleaved({"batch": lambda: next(own), "step": lambda: next(loop)}, rounds, turn, CPU)
    share, step = ratios(measured["batch"], measured["step"]), median(measured["step"])
    return {
        "batch_size": config.batch_size,
        "batch_ms": 1e3 * median(measured["batch"]).value,
        "step_ms": 1e3 * step.value,
        "share": share.value,
        "share_interval": [share.low, share.high],
        "wait_ms": 1e3 * waiting(config, dataset, step.value, rounds),
        "prepare_s": preparing,
    }


def waiting(config: Config, dataset: Dataset, step: float, rounds: int) -> float:
    """Median seconds of waiting for a worker's batch, when batches are requested one step's time apart."""
    ahead = config.model_copy(update={"workers": 1})
    seconds = []
    with closing(batches(dataset, ahead, 0)) as loader:
        next(loader)
        for _ in range(10 * rounds):
            time.sleep(step)
            begun = time.perf_counter()
            next(loader)
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--turn", type=float, default=0.5, help="minimum seconds of a turn")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configurations(Path(folder)):
            rows[name] = row = feeding(config, options.rounds, options.turn)
            line = f"batch {row['batch_ms']:6.2f} ms, step {row['step_ms']:6.1f} ms: {100 * row['share']:.1f} %"
            print(f"{name:<18}{line}; with a worker {row['wait_ms']:.2f} ms")
    write_result(options.out, as_result({"rounds": options.rounds, "data": rows}))


if __name__ == "__main__":
    main()
