"""What training reads: a batch as a function of (seed, position)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ditlab.chance import generator_for
from ditlab.data.circles import SIZE, circles
from ditlab.data.digits import digit_halves
from ditlab.data.images.source import Progress
from ditlab.data.order import sample_order
from ditlab.data.points import DENSITIES, POINTS
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


@runtime_checkable
class HeldOut(Dataset, Protocol):
    """Data of which some are never trained on.

    ``levels`` is how many values a pixel can have, equally spaced from −1 to 1; None where values are continuous.
    """

    levels: int | None

    def held_out(self, seed: int, n: int) -> Batch:
        """n samples, or all there are if they are fewer, that training does not see."""
        ...


@runtime_checkable
class Listed(Protocol):
    """Data that can say which sample is which; what a sample is depends on its place in the order alone."""

    def indices(self, seed: int, position: int, size: int) -> Tensor:
        """The numbers of the samples that ``batch`` gives for the same arguments."""
        ...

    def name(self, index: int) -> str:
        """Where the sample of that number comes from, such as a file."""
        ...


def share_of_batch(dataset: Dataset, seed: int, position: int, size: int, rank: int = 0, world: int = 1) -> Batch:
    """The ``rank``-th of ``world`` equal shares of a batch; one after the other they are the batch."""
    each = size // world
    if world == 1 or isinstance(dataset, Listed):
        return dataset.batch(seed, position + rank * each, each)
    whole, cut = dataset.batch(seed, position, size), slice(rank * each, (rank + 1) * each)  # drawn together
    return Batch(whole.x0[cut], {name: value[cut] for name, value in whole.cond.items()})


@runtime_checkable
class Prepared(Protocol):
    """Data that lie somewhere, and have to be made ready before they are trained on."""

    def prepare(self, quarantine: Path | None = None, progress: Progress | None = None) -> str:
        """Make them ready, listing in the file ``quarantine`` what cannot be used; return what they are known by."""
        ...

    def content(self) -> str:
        """A digest of everything that is trained on, once it is ready."""
        ...


class Circles:
    """Fresh discs for ever."""

    shape: tuple[int, ...] = (1, SIZE, SIZE)
    num_classes: int | None = None
    levels: int | None = 256

    def batch(self, seed: int, position: int, size: int) -> Batch:
        return Batch(circles(size, generator_for(seed, "circles", position)).images, {})

    def held_out(self, seed: int, n: int) -> Batch:
        return Batch(circles(n, generator_for(seed, "evaluation", "held out")).images, {})


class Points:
    """Fresh points for ever, from the distribution of that name."""

    shape: tuple[int, ...] = (2,)
    num_classes: int | None = None
    levels: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.sampler = POINTS[name]
        self.log_density = DENSITIES.get(name)

    def batch(self, seed: int, position: int, size: int) -> Batch:
        return Batch(self.sampler(size, generator_for(seed, self.name, position)), {})

    def held_out(self, seed: int, n: int) -> Batch:
        return Batch(self.sampler(n, generator_for(seed, "evaluation", "held out")), {})


class Digits:
    """Half A of the handwritten digits, in an order that is a function of the seed."""

    shape: tuple[int, ...] = (1, 8, 8)
    num_classes: int | None = 10
    levels: int | None = 17

    def __len__(self) -> int:
        return len(digit_halves()[0].labels)

    def batch(self, seed: int, position: int, size: int) -> Batch:
        images, labels = digit_halves()[0]
        chosen = sample_order(seed, position, size, len(labels))
        return Batch(images[chosen], {"label": labels[chosen]})

    def held_out(self, seed: int, n: int) -> Batch:
        images, labels = digit_halves()[1]
        chosen = sample_order(seed, 0, min(n, len(labels)), len(labels))
        return Batch(images[chosen], {"label": labels[chosen]})


class External:
    """Stands for data that are elsewhere: an imported network knows their shape and labels alone."""

    def __init__(self, shape: tuple[int, ...], num_classes: int | None) -> None:
        self.shape, self.num_classes = shape, num_classes

    def batch(self, seed: int, position: int, size: int) -> Batch:  # noqa: ARG002 - there is nothing to choose from
        raise InputError("this network was trained elsewhere: there are no data here to train on or to compare with")
