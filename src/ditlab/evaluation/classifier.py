"""A small convolutional classifier, trained on the data at hand: it judges samples, and its features compare them.

It is trained once for each data set and kept in the cache, under a name that stands for the data and the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ditlab.core.disk import cache_for, kept_in, write_atomically
from ditlab.core.rng import generator_for, seed_from
from ditlab.data.shuffle import sample_order
from ditlab.evaluation.features import digest_of

VERSION = 2  # of the network and how it is trained
SEED = 0
SIDE = 32  # pixels that larger images are averaged to
WIDTHS, FEATURES = (32, 64, 128), 64
STEPS, EPOCHS, BATCH, LR, DECAY = 500, 40, 128, 3e-3, 0.05
HELD_OUT = 10  # one of so many images is not learned from, up to MOST_HELD_OUT
MOST_HELD_OUT = 2000
FEW = 10  # images, of fewer of which no accuracy is told


class Labelled(NamedTuple):
    """Images to learn from.

    Attributes:
        size: how many.
        get: images (B, C, H, W) in [−1, 1] and labels (B,) by number; labels are None where there are none.
        classes: how many labels; None for none.
        fingerprint: of the data.
    """

    size: int
    get: Callable[[Int[Tensor, " B"]], tuple[Tensor, Tensor | None]]
    classes: int | None
    fingerprint: str


class Network(nn.Module):
    """Four convolutions, a mean over places, and a linear layer: (B, C, H, W) → features (B, 64) → scores (B, K)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        a, b, c = WIDTHS
        shapes = ((channels, a, 1), (a, b, 2), (b, c, 2), (c, FEATURES, 1))
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.GroupNorm(8, o), nn.SiLU()) for i, o, stride in shapes)
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B d"]:
        """What the last layer sees."""
        size = (min(images.shape[2], SIDE), min(images.shape[3], SIDE))
        x = images if images.shape[2:] == size else nn.functional.adaptive_avg_pool2d(images, size)
        return self.layers(x).mean((2, 3))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B k"]:
        return self.head(self.features(images))


class Classifier:
    """Features (B, 64) of a trained network, and what it takes samples for.

    Where the data have labels it has learned these, else by how many quarter turns an image was turned: what it then
    knows is which way up things are, and it does not judge.

    Attributes:
        accuracy: on real images that it did not learn from, those of each class apart; None where these are too few.
    """

    name = "classifier"
    at_once = 500

    def __init__(self, network: Network, labels: bool, accuracy: dict[str, float], overall: float | None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.judges, self.accuracy_by_label, self.accuracy = labels, accuracy, overall
        task = f"{network.head.out_features} labels" if labels else "which way up an image is"
        self.description = f"{FEATURES} features of a classifier trained on {task}"
        tensors = sorted(network.state_dict().items())
        self.digest = digest_of(VERSION, *((name, tensor.numpy().tobytes()) for name, tensor in tensors))

    def to(self, device: torch.device) -> Classifier:
        """Itself, on a device."""
        self.network.to(device)
        return self

    def __call__(self, samples: Float[Tensor, "B C H W"]) -> Float[Tensor, "B d"]:
        with torch.no_grad():
            return self.network.features(samples)

    def judge(self, features: Float[Tensor, "B d"]) -> Int[Tensor, " B"]:
        """The labels that it gives to samples of these features."""
        with torch.no_grad():
            return self.network.head(features.to(self.network.head.weight)).argmax(1).cpu()


def trained(data: Labelled, shape: tuple[int, ...], notice: Callable[[str], None], beat: Callable[[], None]) -> Any:
    """The classifier of these images as something that another process can take: see ``classifier_of``.

    It comes from the cache, or is trained on the CPU, in fp32 and by a fixed seed: with the same number of threads the
    same weights come out, and the digest tells where not.
    """
    facts = (VERSION, SEED, WIDTHS, FEATURES, STEPS, EPOCHS, BATCH, LR, DECAY, SIDE, shape, data.classes)
    path = cache_for("classifiers") / f"{digest_of(*facts, data.fingerprint)}.safetensors"
    if (kept := _read(path)) is None:
        notice(f"training a small classifier on {data.fingerprint}, once; it is kept in {path}")
        tensors, told = _train(data, shape, beat)
        with kept_in(path.parent):
            write_atomically(path, lambda file: save_file(tensors, file, told))
        kept = _read(path)
    assert kept is not None
    return kept


def classifier_of(kept: Any, data: Labelled, shape: tuple[int, ...]) -> Classifier:
    """The classifier that ``trained`` has found."""
    tensors, told = kept
    network = Network(shape[0], _classes(data, shape))
    network.load_state_dict(tensors)
    labels = {name: float(value) for name, value in told.items() if name != "all"}
    return Classifier(network, data.classes is not None, labels, float(told["all"]) if "all" in told else None)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _classes(data: Labelled, shape: tuple[int, ...]) -> int:
    turns = 4 if shape[1] == shape[2] else 2
    return turns if data.classes is None else data.classes


def _train(
    data: Labelled, shape: tuple[int, ...], beat: Callable[[], None]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights, and the accuracy on images that were not learned from, in words."""
    classes = _classes(data, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(SEED, "classifier"))
        network = Network(shape[0], classes)
    order = torch.randperm(data.size, generator=generator_for(SEED, "evaluation", "classifier"))
    away = min(MOST_HELD_OUT, data.size // HELD_OUT)
    learned = order[away:]
    steps = min(STEPS, max(1, EPOCHS * len(learned) // BATCH))
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps) if steps > 1 else None
    for step in range(steps):
        size = min(BATCH, len(learned))
        chosen = learned[sample_order(seed_from(SEED, "classifier", "order"), step * size, size, len(learned))]
        images, labels = _task(data, chosen, classes, step)
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule is not None:
            schedule.step()
        beat()
    found = _accuracy(network.eval(), data, order[:away], classes) if away >= FEW else {}
    return network.state_dict(), found


def _task(data: Labelled, chosen: Tensor, classes: int, step: int) -> tuple[Tensor, Tensor]:
    """Images with their labels, or turned, with how they were turned."""
    images, labels = data.get(chosen)
    if labels is not None:
        return images, labels
    turns = torch.randint(classes, (len(images),), generator=generator_for(SEED, "classifier", "turns", step))
    each = 1 if classes == 4 else 2  # quarter turns
    turned = [torch.rot90(image, each * int(turn), (1, 2)) for image, turn in zip(images, turns, strict=True)]
    return torch.stack(turned), turns


def _accuracy(network: Network, data: Labelled, chosen: Tensor, classes: int) -> dict[str, str]:
    """The share of images it is right about, of all and of each class that is there."""
    right, all_labels = [], []
    for first in range(0, len(chosen), BATCH):
        images, labels = _task(data, chosen[first : first + BATCH], classes, -1 - first)
        with torch.no_grad():
            right.append((network(images).argmax(1) == labels).double())
        all_labels.append(labels)
    hits, labels = torch.cat(right), torch.cat(all_labels)
    each = {str(k): repr(float(hits[labels == k].mean())) for k in sorted(set(labels.tolist()))}
    return {"all": repr(float(hits.mean())), **each}
