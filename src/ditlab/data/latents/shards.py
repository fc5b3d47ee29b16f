"""The files of a store: Arrow streams, written by Hugging Face ``datasets`` and read memory-mapped by pyarrow.

A row is an image that could be used: ``number`` (in the source), ``name``, ``label`` where there are classes, and the
lists ``mean``, ``std`` and, perhaps, ``mirrored_mean``, ``mirrored_std``: the numbers of a latent (C, H, W) in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ditlab.core.errors import InputError
from ditlab.data.latents.index import Plan

COLUMNS = ("mean", "std", "mirrored_mean", "mirrored_std")


def columns_of(plan: Plan) -> tuple[str, ...]:
    """The lists that a store has."""
    return COLUMNS if plan.mirrored else COLUMNS[:2]


def write_shard(
    path: Path,
    plan: Plan,
    numbers: Sequence[int],
    names: Sequence[str],
    labels: Sequence[int] | None,
    latents: Mapping[str, np.ndarray],
) -> None:
    """Write the rows of a shard; ``latents`` are (rows, C·H·W) of the plan's type, for each of its lists."""
    import datasets
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    values = math.prod(plan.shape)
    features = {"number": datasets.Value("int64"), "name": datasets.Value("string")}
    columns = {"number": pa.array(numbers, pa.int64()), "name": pa.array(names, pa.string())}
    if labels is not None:
        features["label"], columns["label"] = datasets.Value("int64"), pa.array(labels, pa.int64())
    for name in columns_of(plan):
        features[name] = datasets.List(datasets.Value(plan.dtype), length=values)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(latents[name].ravel()), values)
    rows = max(1, len(numbers))
    with ArrowWriter(path=str(path), features=datasets.Features(features), writer_batch_size=rows) as writer:
        writer.write_table(pa.table(columns), writer_batch_size=rows)
        writer.finalize()


class OpenShard:
    """A shard, mapped into memory.

    Attributes:
        latents: for each list (rows, C·H·W), not copied.
        labels: (rows,) int64, or None.

    Raises:
        InputError: it is gone, damaged, or not as the plan says.
    """

    def __init__(self, path: Path, plan: Plan, rows: int) -> None:
        if find_spec("pyarrow") is None:
            raise InputError(f"{path} is read by pyarrow: pip install 'ditlab[data]'")
        import pyarrow as pa

        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            if table.num_rows != rows:
                raise ValueError(f"it has {table.num_rows} rows, not {rows}")
            column = {name: table.column(name).chunk(0) for name in table.column_names}
            numbers = {name: column[name].flatten().to_numpy() for name in columns_of(plan)}
            self.latents = {name: values.reshape(rows, math.prod(plan.shape)) for name, values in numbers.items()}
            self.labels: np.ndarray | None = None if plan.classes is None else column["label"].to_numpy()
            self._names = column["name"]
            wrong = [name for name, values in self.latents.items() if values.dtype != plan.dtype]
            if wrong:
                raise ValueError(f"{wrong[0]} is not of type {plan.dtype}")
            if self.labels is not None and plan.classes is not None:
                _must_be_labels(self.labels, rows, len(plan.classes))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
            said = " ".join(str(error).split())[:120]
            raise InputError(f"{path} is damaged ({said}): bring it back from a copy, or encode anew") from None

    def name(self, row: int) -> str:
        """Of a row's image in the source."""
        return str(self._names[row].as_py())


def _must_be_labels(labels: np.ndarray, rows: int, classes: int) -> None:
    if labels.dtype != np.int64 or labels.shape != (rows,):
        raise ValueError(f"it has {labels.shape} labels of type {labels.dtype} for {rows} rows")
    if rows and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"its labels run from {labels.min()} to {labels.max()}, and there are {classes} classes")
