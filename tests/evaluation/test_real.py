"""Which data samples are compared with."""

from types import SimpleNamespace

import numpy as np
import torch

from ditlab.data.images.dataset import Images
from ditlab.evaluation.reference import asked_for, other_data, random_order, real_data

CLASSES, EACH = 200, 400  # more than are shuffled together in training, one class after the other


class Sorted(Images):
    """Many images in the order of their classes; the first pixel is the class."""

    fingerprint = "sorted"
    store = SimpleNamespace(labels=np.arange(CLASSES * EACH) // EACH)

    def __init__(self):
        super().__init__("nowhere", (1, 2), 1, tuple(map(str, range(CLASSES))))

    def __len__(self):
        return CLASSES * EACH

    def images(self, indices, mirrored=None):
        classes = torch.from_numpy(np.asarray(indices) // EACH)
        return torch.stack([classes, torch.zeros_like(classes)], 1).reshape(-1, 1, 1, 2).float()


def classes_in(lot, count):
    return lot.get(torch.arange(min(lot.size, count)))[:, 0, 0, 0].unique()


def test_all_classes_are_compared_with():
    data = Sorted()
    real, other = real_data(data, 2000, 0), other_data(data, data, 2000, 1, None)
    for lot in (real.reference, real.floor, real.training.plain, other.reference):
        assert len(classes_in(lot, 2000)) > 0.99 * CLASSES  # a class is missed with a chance of e⁻¹⁰
    assert real.training.plain.size == len(data)
    assert (real.reference.size, other.reference.size) == (40_000, 50_000)


def test_halves_have_nothing_in_common():
    order = random_order(100_000, 3)
    assert torch.equal(order.sort().values, torch.arange(100_000))
    assert not torch.equal(order, random_order(100_000, 4))
    assert torch.equal(order, random_order(100_000, 3))


def test_labels_come_as_often_as_in_the_data():
    labels = asked_for(Sorted(), CLASSES * EACH + 5, 0, "data")["label"]
    counts = labels.bincount()
    assert (counts.min(), len(counts), len(labels)) == (EACH, CLASSES, CLASSES * EACH + 5)
    assert len(labels[:2000].unique()) > 0.99 * CLASSES
