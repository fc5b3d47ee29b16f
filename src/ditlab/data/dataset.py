"""What training reads: a batch as a function of (seed, position)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.conditions import Conditions


class Batch(NamedTuple):
    """Clean samples (B, *shape) and their conditions as networks see them, by name.

    A label is (B,) int64; a scalar (B,) float32, standardised, NaN where it is unknown; text (B, L, dim) float32.
    """

    x0: Tensor
    cond: dict[str, Tensor]


@runtime_checkable
class Dataset(Protocol):
    """Samples of one shape, and what is known of each; the condition "label" is the class."""

    shape: tuple[int, ...]
    conditions: Conditions

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

    def prepare(self, quarantine: Path | None = None, progress: Callable[[int, int], None] | None = None) -> str:
        """Make them ready, listing in the file ``quarantine`` what cannot be used; return what they are known by."""
        ...

    def content(self) -> str:
        """A digest of everything that is trained on, once it is ready."""
        ...


class External:
    """Stands for data that are not here: their shape and conditions are all that is known."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions) -> None:
        self.shape, self.conditions = shape, conditions

    def batch(self, seed: int, position: int, size: int) -> Batch:  # noqa: ARG002 - there is nothing to choose from
        raise InputError(
            "the data of this run are not here, to train on or to compare with: it was trained elsewhere, or they were "
            "given to ditlab.fit, whose dataset= takes them again"
        )
