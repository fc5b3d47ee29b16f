"""What training reads: a batch as a function of (seed, position)."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ditlab.chance import generator_for
from ditlab.data.circles import SIZE, circles
from ditlab.data.digits import digit_halves
from ditlab.data.order import sample_order
from ditlab.data.points import POINTS
from ditlab.errors import InputError


class Batch(NamedTuple):
    """Clean samples (B, *shape) and their conditions, ``{"label": (B,) int64}`` or nothing."""

    x0: Tensor
    cond: dict[str, Tensor]


@runtime_checkable
class Dataset(Protocol):
    """Samples of one shape; ``num_classes`` is None where there are no labels."""

    shape: tuple[int, ...]
    num_classes: int | None

    def batch(self, seed: int, position: int, size: int) -> Batch:
        """The ``size`` samples that follow after ``position`` samples were seen."""
        ...


class Circles:
    """Fresh discs for ever."""

    shape: tuple[int, ...] = (1, SIZE, SIZE)
    num_classes: int | None = None

    def batch(self, seed: int, position: int, size: int) -> Batch:
        return Batch(circles(size, generator_for(seed, "circles", position)).images, {})


class Points:
    """Fresh points for ever, from the distribution of that name."""

    shape: tuple[int, ...] = (2,)
    num_classes: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.sampler = POINTS[name]

    def batch(self, seed: int, position: int, size: int) -> Batch:
        return Batch(self.sampler(size, generator_for(seed, self.name, position)), {})


class Digits:
    """Half A of the handwritten digits, in an order that is a function of the seed."""

    shape: tuple[int, ...] = (1, 8, 8)
    num_classes: int | None = 10

    def batch(self, seed: int, position: int, size: int) -> Batch:
        images, labels = digit_halves()[0]
        chosen = sample_order(seed, position, size, len(labels))
        return Batch(images[chosen], {"label": labels[chosen]})


class External:
    """Stands for data that are elsewhere: an imported network knows their shape and labels alone."""

    def __init__(self, shape: tuple[int, ...], num_classes: int | None) -> None:
        self.shape, self.num_classes = shape, num_classes

    def batch(self, seed: int, position: int, size: int) -> Batch:  # noqa: ARG002 - there is nothing to choose from
        raise InputError("this network was trained elsewhere: there are no data here to train on or to compare with")
