"""A data set of what you have at hand: tensors, a torch data set, or a Hugging Face ``Dataset``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.conditions import AnyCondition, Conditions, Label, Scalar, Text
from ditlab.data.dataset import Batch
from ditlab.data.shuffle import sample_order

SAMPLES = ("x", "image", "img", "pixel_values")  # keys that samples are looked for under


class Samples:
    """Finite data that are had by number, each epoch in an order that is a function of the seed.

    Args:
        get: gives the sample of a number.
        conditions, cond: what is known of each; its values, as networks see them, (size, ...) by name.
    """

    levels: int | None = None

    def __init__(
        self, size: int, get: Callable[[int], Tensor], conditions: Conditions, cond: Mapping[str, Tensor]
    ) -> None:
        self.size, self.get, self.conditions, self.cond = size, get, conditions, cond
        self.shape: tuple[int, ...] = tuple(get(0).shape)

    def __len__(self) -> int:
        return self.size

    def batch(self, seed: int, position: int, size: int) -> Batch:
        chosen = self.indices(seed, position, size)
        return Batch(self.samples(chosen), {name: value[chosen] for name, value in self.cond.items()})

    def samples(self, numbers: Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        """The samples of these numbers; ``InputError`` for another shape than the first's, NaN or infinity."""
        found = []
        for i in numbers.tolist():
            x = self.get(i)
            if tuple(x.shape) != self.shape:
                raise InputError(f"sample {i} has shape {tuple(x.shape)} and sample 0 {self.shape}: use one shape")
            if not x.isfinite().all():
                raise InputError(f"sample {i} holds NaN or infinity: leave it out")
            found.append(x)
        return torch.stack(found)

    def indices(self, seed: int, position: int, size: int) -> Int[Tensor, " size"]:
        """The numbers of the samples in ``batch`` of the same arguments."""
        return sample_order(seed, position, size, self.size)

    def name(self, index: int) -> str:
        """What to call a sample."""
        return f"sample {index}"


def as_dataset(
    data: Any, cond: Mapping[str, Any] | None = None, x: str | None = None, units: Mapping[str, str] | None = None
) -> Samples:
    """A data set to train on, of samples and what is known of each. ::

        ditlab.as_dataset(x, cond={"label": y, "age": ages}, units={"age": "years"})     # tensors or arrays
        ditlab.as_dataset(torch_dataset)                                                 # items x, or (x, label)
        ditlab.as_dataset(rows, x="image", cond={"label": "species", "age": "age"})      # by keys, or columns

    Args:
        data: samples (n, *shape); or anything with a length whose items are samples, pairs of a sample and a label, or
            dictionaries, as a map-style ``torch.utils.data.Dataset``; or a Hugging Face ``datasets.Dataset``.
            Pictures, and bytes from 0 to 255, are brought to [−1, 1]; other numbers stay as they are.
        cond: what is known of each sample, by name. "label" is a class: whole numbers from 0, or names; "text" features
            of tokens (n, L, dim) with "text_mask" (n, L); everything else a number, NaN where it is unknown. Of
            dictionaries and columns these are the keys that they lie under; without, only "label" is used, if it is
            there.
        x: key of the samples in dictionaries, or their column; without, "x" or "image".
        units: of the numbers.

    Raises:
        InputError: no samples, samples of several shapes, NaN; labels that are fractions; not one value for each.
    """
    if isinstance(data, np.ndarray | Tensor):
        array = as_sample(data)
        if array.dim() < 2 or not len(array):
            raise InputError(f"samples must be (n, *shape) with n at least 1, not {tuple(array.shape)}")
        if not array.isfinite().all():
            broken = int((~array.isfinite().flatten(1).all(1)).nonzero()[0])
            raise InputError(f"sample {broken} holds NaN or infinity: leave it out")
        return _samples(len(array), array.__getitem__, dict(cond or {}), (), units)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(f"{type(data).__name__} has no length or no items: give tensors, or a map-style data set")
    if not len(data):
        raise InputError("there are no samples")
    first = data[0]
    if not isinstance(first, Mapping):
        paired = isinstance(first, tuple | list) and len(first) == 2 and not isinstance(first[0], int | float)
        known = {"label": [int(data[i][1]) for i in range(len(data))]} if paired and cond is None else dict(cond or {})
        return _samples(len(data), lambda i: as_sample(data[i][0] if paired else data[i]), known, (), units)
    key = x or next((name for name in SAMPLES if name in first), None)
    wanted = dict(cond) if cond is not None else {"label": "label"} if "label" in first else {}
    if missing := [name for name in (key, *wanted.values()) if name is None or name not in first]:
        raise InputError(f"there is no {missing[0] or 'x or image'} in the data, only {', '.join(map(str, first))}")
    columns = hasattr(data, "column_names")  # as datasets.Dataset, which reads one without the others
    known = {
        name: list(data[column]) if columns else [data[i][column] for i in range(len(data))]
        for name, column in wanted.items()
    }
    names = getattr(data.features[wanted["label"]], "names", ()) if columns and "label" in wanted else ()
    return _samples(len(data), lambda i: as_sample(data[i][key]), known, names, units)


def as_sample(value: Any) -> Tensor:
    """A sample in fp32: pictures channels first; pictures and bytes in [−1, 1], other numbers as they are."""
    array = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if hasattr(value, "getbands"):  # a picture of Pillow's: (H, W) or (H, W, C)
        array = array[None] if array.dim() == 2 else array.permute(2, 0, 1)
    return array.float() / 127.5 - 1 if array.dtype == torch.uint8 else array.float()


def _tensor(given: Any) -> Tensor:
    return given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))


def _samples(
    size: int,
    get: Callable[[int], Tensor],
    known: dict[str, Any],
    names: Sequence[str],
    units: Mapping[str, str] | None,
) -> Samples:
    conditions: dict[str, AnyCondition] = {}
    cond: dict[str, Tensor] = {}
    for name, given in known.items():
        if len(given) != size:
            raise InputError(f"cond[{name!r}] has {len(given)} values for {size} samples: give one for each")
        if name == "label":
            conditions[name], cond[name] = _labels(given, names)
            continue
        try:
            values = _tensor(given)
        except (TypeError, ValueError):
            raise InputError(f"cond[{name!r}] must be numbers, not {str(given[0])[:80]!r}") from None
        if name == "text_mask":
            cond[name] = values.bool()
        elif name == "text":
            conditions[name], cond[name] = Text(values.shape[-1]), values.float()
        else:
            unit = (units or {}).get(name, "")
            conditions[name], cond[name] = _scalars(name, values, unit)
    return Samples(size, get, conditions, cond)


def _labels(given: Any, names: Sequence[str]) -> tuple[Label, Int[Tensor, " n"]]:
    """Labels by number; without ``names`` they are called as they are."""
    if isinstance(given[0], str):
        names = sorted(set(given))
        numbers = {name: i for i, name in enumerate(names)}
        return Label(names), torch.tensor([numbers[name] for name in given])
    values = _tensor(given)
    if values.is_floating_point() or values.dim() != 1 or values.min() < 0:
        raise InputError(f"labels must be whole numbers from 0, or names, not {str(given[0])[:80]}")
    return Label(names or int(values.max()) + 1), values.long()


def _scalars(name: str, values: Tensor, unit: str) -> tuple[Scalar, Float[Tensor, " n"]]:
    """Numbers with their mean 0 and standard deviation 1; those that are NaN, unknown, are left out of both."""
    known = values.double()[~values.isnan()]
    if values.dim() != 1 or not len(known) or not known.isfinite().all():
        raise InputError(f"cond[{name!r}] must be a finite number for each sample, or NaN where it is unknown")
    scalar = Scalar(unit, float(known.mean()), float(known.std(correction=0)) or 1.0)
    return scalar, ((values.double() - scalar.mean) / scalar.std).float()
