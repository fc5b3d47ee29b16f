"""What is known of each sample of a data set, and a network can be conditioned on. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """One of several classes, a whole number from 0.

    Args:
        names: of the classes, in order; a number n stands for the names "0" to "n − 1".
    """

    names: tuple[str, ...]

    def __init__(self, names: int | Sequence[str]) -> None:
        every = tuple(map(str, range(names) if isinstance(names, int) else names))
        if not every:
            raise ValueError("a label needs at least one class")
        object.__setattr__(self, "names", every)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Scalar:
    """A number. People read and write it as it is measured; networks see (value − mean)/std, and NaN for unknown.

    Args:
        unit: that it is measured in, such as "years".
        mean, std: of the data.
    """

    unit: str = ""
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Text:
    """Features of a text's tokens, (L, dim); beside "text" the condition "text_mask" (L,) says which are read."""

    dim: int


AnyCondition = Label | Scalar | Text
Conditions = Mapping[str, AnyCondition]

NO_CONDITIONS: Conditions = {}


def num_classes(conditions: Conditions) -> int | None:
    """How many classes the label has; None without a label."""
    names = class_names(conditions)
    return None if names is None else len(names)


def class_names(conditions: Conditions) -> tuple[str, ...] | None:
    """The names of the classes, in order; None without a label."""
    label = conditions.get("label")
    return label.names if isinstance(label, Label) else None


def labelled(classes: int | Sequence[str] | None) -> Conditions:
    """The conditions of data with these classes and nothing else; without conditions for None."""
    return NO_CONDITIONS if classes is None else {"label": Label(classes)}
