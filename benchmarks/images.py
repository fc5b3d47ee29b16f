"""Are a run's images read fast enough, and does the network use their labels?

    python benchmarks/images.py runs/cifar --n 500        some minutes on two CPU cores

Prints the speed of reading batches and of training; the loss with the images' own labels and with shuffled ones, at the
same noise; and the correlation of the mean colours of each class's samples with those of its images.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import Tensor

import ditlab
from ditlab.core.rng import generator_for
from ditlab.data.dataset import Dataset
from ditlab.runs.build import build_dataset
from ditlab.runs.run import Run


def feeding(run: Run, dataset: Dataset, batches: int = 200) -> dict[str, float]:
    """Images/s of reading the data, and of training (the median in its metrics)."""
    size, seed = run.config.batch_size, run.config.seed
    dataset.batch(seed, 0, size)
    begun = time.perf_counter()
    for i in range(batches):
        dataset.batch(seed, i * size, size)
    fed = batches * size / (time.perf_counter() - begun)
    trained = [line["images_per_s"] for line in run.folder.read_metrics() if "images_per_s" in line]
    return {"fed": fed, "trained": float(np.median(trained)), "ratio": fed / float(np.median(trained))}


@torch.no_grad()
def label_losses(run: Run, dataset: Dataset, n: int) -> dict[str, float]:
    """Mean loss with own and with shuffled labels, at the same times and noise; standard error of the difference."""
    own: list[Tensor] = []
    other: list[Tensor] = []
    for first in range(0, n, 100):
        x0, cond = dataset.batch(1, first, 100)
        shuffled = cond["label"][torch.randperm(100, generator=generator_for("labels", first))]
        for label, losses in ((cond["label"], own), (shuffled, other)):
            losses.append(run.process.losses(x0, {"label": label}, generator=generator_for("noise", first)))
    difference = torch.cat(other) - torch.cat(own)
    return {
        "own": float(torch.cat(own).mean()),
        "shuffled": float(torch.cat(other).mean()),
        "standard_error": float(difference.std() / len(difference) ** 0.5),
    }


def mean_colours(images: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """(classes, C): mean over the images of a class and their pixels."""
    return np.stack([images[labels == k].mean((0, 2, 3)).numpy() for k in range(classes)])


def main() -> None:
    """Print everything as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument(
        "--n", type=int, default=500, help="samples, and data for the losses; 20 times as many for colours"
    )
    options = parser.parse_args()
    run = ditlab.load(options.run)
    dataset = build_dataset(run.config)
    assert run.num_classes is not None, "this run has no labels"
    x0, cond = dataset.batch(0, 0, 20 * options.n)
    labels = run.labels(options.n)
    assert labels is not None
    samples = run.sample(options.n, labels, guidance=run.config.sampling.guidance, batch_size=100)
    drawn = mean_colours(samples, labels, run.num_classes)
    real = mean_colours(x0, cond["label"], run.num_classes)
    correlation = [float(np.corrcoef(drawn[:, c], real[:, c])[0, 1]) for c in range(real.shape[1])]
    together = float(np.corrcoef((drawn - drawn.mean(0)).ravel(), (real - real.mean(0)).ravel())[0, 1])
    figures = {
        "images_per_s": feeding(run, dataset),
        "loss": label_losses(run, dataset, options.n),
        "colour_correlation": {"channels": correlation, "together": together},
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
