"""The real data that samples are compared with: a part to compare with, and another that shows what real data score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ditlab.core.rng import generator_for, seed_from
from ditlab.data.circles import Circles, circles
from ditlab.data.conditions import num_classes
from ditlab.data.dataset import Dataset, External
from ditlab.data.digits import Digits, digit_halves
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.data.points import Points
from ditlab.evaluation.classifier import Labelled
from ditlab.evaluation.metrics.by_data import REFERENCE
from ditlab.runs.sampling import conditioned

MOST_FRESH = 10_000  # data made to compare with
AT_A_TIME = 1000  # data whose conditions are read at a time
MOST = 50_000  # of finite data that are compared with
SEARCHED, SEARCHED_VALUES = 200_000, 2**31  # data, and their values, among which copies are looked for: 50,000 or more

Get = Callable[[Int[Tensor, " B"]], Tensor]


class Lot(NamedTuple):
    """So many data, had by their numbers from 0: (B,) → (B, *shape)."""

    size: int
    get: Get


class Training(NamedTuple):
    """Finite data that were trained on: as they are, turned left to right if that was trained on too, and by name.

    ``held_out`` are some that were not, to see how near those come; None where all were trained on.
    """

    plain: Lot
    mirrored: Lot | None
    name: Callable[[int], str]
    held_out: Lot | None


class Real(NamedTuple):
    """What samples are compared with.

    Attributes:
        name: what the data are, and how they are known.
        reference: what samples are compared with.
        floor: other data, that are put in the place of samples; None where there are none.
        training: what was trained on, where it is finite.
    """

    name: str
    reference: Lot
    floor: Lot | None
    training: Training | None


def real_data(dataset: Dataset, n: int, seed: int, decode: Callable[[Tensor], Tensor] | None = None) -> Real:
    """Data of the kind that a run was trained on, for n samples.

    Data without end are made anew: at least 2,000 to compare with. Of the digits half B is compared with, and n of
    half A, which was trained on, put in the place of samples. Of other finite data one half, up to 50,000, is compared
    with; n of the others are put in the place of samples. Which half is which is chosen at random.

    Args:
        dataset: the data.
        n: how many samples there will be.
        seed: of what is made, or which half is which.
        decode: makes images of latents.
    """
    match dataset:
        case Digits():
            half_a, half_b = digit_halves()
            floor = _lot(half_a.images[:n])
            return Real("half B of the digits", _lot(half_b.images), floor, _training(dataset, None))
        case Circles() | Points():
            make = _circles if isinstance(dataset, Circles) else dataset.sampler
            sizes = {"reference": min(max(REFERENCE, n), MOST_FRESH), "floor": min(n, MOST)}
            reference, floor = (
                _lot(make(size, generator_for(seed, "evaluation", what))) for what, size in sizes.items()
            )
            name = "circles" if isinstance(dataset, Circles) else dataset.name
            return Real(f"fresh {name}", reference, floor, None)
        case Images() | Latents():
            everything, order = lot_of(dataset, decode), random_order(len(dataset), seed)
            half = max(1, len(order) // 2)
            others = order[half:][:n]
            return Real(
                f"half of {dataset.fingerprint}",
                _chosen(everything, order[: min(half, MOST)]),
                None if len(others) < 2 else _chosen(everything, others),
                _training(dataset, decode),
            )
    return _own_data(dataset, n, seed)


def _own_data(dataset: Dataset, n: int, seed: int) -> Real:
    """Of a data set of one's own: what it gives first in an order of evaluation, and after that n in place of samples.

    Where it has a length, at most half of it is compared with.
    """
    most = len(dataset) if isinstance(dataset, Sized) else 2 * MOST
    first = min(max(REFERENCE, n), max(1, most // 2), MOST)
    seed = seed_from(seed, "evaluation", "own data")

    def lot(begin: int, size: int) -> Lot:
        return Lot(size, lambda numbers: torch.cat([dataset.batch(seed, begin + i, 1).x0 for i in numbers.tolist()]))

    others = min(n, most - first)
    return Real(type(dataset).__name__, lot(0, first), lot(first, others) if others > 1 else None, None)


def other_data(
    other: Images | Latents, dataset: Dataset, n: int, seed: int, decode: Callable[[Tensor], Tensor] | None
) -> Real:
    """Data elsewhere than a run was trained on: up to 50,000 of them.

    What was trained on is put in the place of samples, for a generator that has learned all would score that; unless
    it is the same data, or is not here.
    """
    everything = lot_of(other, decode if isinstance(other, Latents) else None)
    reference = _chosen(everything, random_order(len(other), seed)[:MOST])
    if not isinstance(dataset, Images | Latents):
        return Real(other.fingerprint, reference, None, None)
    floor = None
    if dataset.fingerprint != other.fingerprint:
        floor = _chosen(lot_of(dataset, decode), random_order(len(dataset), seed)[:n])
    return Real(other.fingerprint, reference, floor, _training(dataset, decode))


def lot_of(dataset: Images | Latents, decode: Callable[[Tensor], Tensor] | None = None, mirrored: bool = False) -> Lot:
    """All of finite data; of latents one draw of each, decoded if there is a decoder."""

    def get(numbers: Tensor) -> Tensor:
        chosen, turned = numbers.numpy(), np.full(len(numbers), mirrored)
        if isinstance(dataset, Images):
            return dataset.images(chosen, turned)
        found = dataset.draw(seed_from(0, "evaluation"), np.zeros(len(chosen), np.int64), chosen, turned)[0]
        return found if decode is None else decode(found)

    return Lot(len(dataset), get)


def labelled(dataset: Dataset) -> Labelled | None:
    """What a classifier learns from, for data that are images: of the digits half B; None for data without end."""
    match dataset:
        case Digits():
            half_b = digit_halves()[1]
            return Labelled(len(half_b.labels), lambda i: (half_b.images[i], half_b.labels[i]), 10, "digits, half B")
        case Images():
            labels, get = dataset.store.labels, lot_of(dataset).get
            known = None if labels is None or dataset.classes is None else torch.from_numpy(labels)
            classes = None if known is None else num_classes(dataset.conditions)
            return Labelled(
                len(dataset), lambda i: (get(i), None if known is None else known[i]), classes, dataset.fingerprint
            )
    return None


def asked_for(dataset: Dataset, n: int, seed: int, labels: str = "balanced") -> dict[str, Tensor]:
    """What the network is told of n samples that are measured: the label i mod classes for sample i.

    Labels from the "data" are as often as there. So are all conditions together where there are others beside the
    label; where the data are not here, those are unknown.
    """
    conditions = dataset.conditions
    if {*conditions} - {"label"} and not isinstance(dataset, External):
        return _conditions_as_in(dataset, n, seed)
    if labels == "data" and "label" in conditions:
        return {"label": _labels_as_in(dataset, n, seed)}
    return conditioned(conditions, n)


def _conditions_as_in(dataset: Dataset, n: int, seed: int) -> dict[str, Tensor]:
    """The conditions of n data."""
    seed = seed_from(seed, "evaluation", "labels")
    found = [dataset.batch(seed, first, min(AT_A_TIME, n - first)).cond for first in range(0, n, AT_A_TIME)]
    return {name: torch.cat([cond[name] for cond in found]) for name in found[0]}


def _labels_as_in(dataset: Dataset, n: int, seed: int) -> Int[Tensor, " n"]:
    """n labels as often as the data have them, in a random order."""
    if not isinstance(dataset, Images | Latents):
        return _conditions_as_in(dataset, n, seed)["label"]
    seed = seed_from(seed, "evaluation", "labels")
    rounds = range(-(-n // len(dataset)))
    chosen = torch.cat([random_order(len(dataset), seed_from(seed, i)) for i in rounds])[:n]
    pieces = [_labels_of(dataset, some.numpy()) for some in torch.split(chosen, AT_A_TIME)]
    return torch.from_numpy(np.concatenate(pieces)).long()


def _labels_of(dataset: Images | Latents, numbers: np.ndarray) -> np.ndarray:
    zeros = np.zeros(len(numbers), np.int64)
    if isinstance(dataset, Latents):
        labels = dataset.draw(0, zeros, numbers, zeros.astype(bool))[1]
    else:
        labels = None if dataset.store.labels is None else dataset.store.labels[numbers]
    assert labels is not None  # they are asked for of a run that has learned them
    return labels


def _circles(n: int, generator: torch.Generator) -> Tensor:
    return circles(n, generator).images


def _lot(tensor: Tensor) -> Lot:
    return Lot(len(tensor), lambda numbers: tensor[numbers])


def _chosen(lot: Lot, numbers: Tensor) -> Lot:
    return Lot(len(numbers), lambda positions: lot.get(numbers[positions]))


def random_order(size: int, seed: int) -> Int[Tensor, " size"]:
    """Every number below ``size`` once, any order as likely as another.

    The order of training is not: neighbours, which are of one class in many data, stay together there.
    """
    return torch.randperm(size, generator=generator_for(seed, "evaluation", "order"))


def _training(dataset: Dataset, decode: Callable[[Tensor], Tensor] | None) -> Training:
    """What was trained on: 50,000, or more where they are small."""
    if isinstance(dataset, Digits):
        half_a, half_b = digit_halves()
        return Training(_lot(half_a.images), None, lambda i: f"half A, {i}", _lot(half_b.images))
    assert isinstance(dataset, Images | Latents)
    most = max(MOST, min(SEARCHED, SEARCHED_VALUES // math.prod(dataset.shape)))
    order = random_order(len(dataset), 0)[:most]
    mirrored = _chosen(lot_of(dataset, decode, mirrored=True), order) if dataset.flip else None
    return Training(_chosen(lot_of(dataset, decode), order), mirrored, lambda i: dataset.name(int(order[i])), None)
