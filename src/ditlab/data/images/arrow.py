"""Images in parquet files and data sets on the Hub, through Hugging Face ``datasets``.

They are turned into Arrow files once and read from there, memory-mapped. Of a row only the bytes of its image are
used, and decoded as those of any file are; no code that comes with data is run.
"""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditlab.core.disk import cache_folder, cache_for, forbidden
from ditlab.core.errors import InputError
from ditlab.data.images.labels import CAPTIONS, LABELS, Labels, numbered
from ditlab.data.images.source import MAX_BYTES, Rejected, Unusable, pinned, read_file, too_large

IMAGES = ("image", "img", "png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")
NAMES = ("__key__", "file_name")
PATIENCE = 10.0  # seconds for the Hub to answer
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Table:
    """The images in a table; see ``Source``.

    Args:
        location: what a person named: a file, a folder, ``owner/name`` or, of one commit, ``owner/name@commit``.
        kind: "parquet" or "hub".
        files: in order; none for the Hub.
        column: of the images; None is the first that holds images.

    Raises:
        InputError: ``datasets`` is missing, the data cannot be had, or no column holds images.
    """

    def __init__(self, location: str, kind: str, files: Sequence[str], column: str | None = None) -> None:
        self._kind = kind
        self.rejected: list[Rejected] = []
        self.other: Counter[str] = Counter()
        self.notes: list[str] = []
        rows, location = _load(location, kind, files)
        self.location = location
        if not rows.num_rows:
            raise InputError(f"{location} has no rows")
        self._column = self._choose_column(rows, column)
        rows = _as_bytes(rows, self._column, location)
        self._rows, self._images = rows, rows.select_columns([self._column])
        self.stamp = f"{rows._fingerprint} {[Path(file).stat().st_mtime_ns for file in files]}"
        self.names = _names(rows, self._column)
        self.sizes = _sizes(rows, self._column)
        self.classes, self.labels = self._label(rows)
        captions = _column(rows, CAPTIONS)
        self.captions = {i: text for i, text in enumerate(captions or ()) if isinstance(text, str)}

    def column(self, name: str) -> list[Any]:
        found = _column(self._rows, (name,))
        if found is None:
            raise InputError(f"{self.location} has no column {name}, only {', '.join(self._rows.column_names)}")
        return found

    def read(self, index: int) -> bytes:
        image = self._images[index][self._column] or {}
        body, path = image.get("bytes"), image.get("path")
        if body is None and path and self._kind == "hub" and _is_fetched(path):  # unpacked from the Hub's archives
            return read_file(path)
        if body is None and path:  # a table may name any file of this machine
            raise Unusable("empty row: it names a file outside of the table, which is not opened")
        if body is None:
            raise Unusable("empty row")
        if len(body) > MAX_BYTES:
            raise too_large(len(body))
        return bytes(body)

    def _choose_column(self, rows: Any, asked: str | None) -> str:
        """The column of images that is used; others are noted."""
        import datasets

        if asked is not None:
            if asked not in rows.column_names:
                raise InputError(f"{self.location} has no column {asked}, only {', '.join(rows.column_names)}")
            return asked
        images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
        images += [name for name in IMAGES if name in rows.column_names and name not in images]
        if not images:
            raise InputError(
                f"{self.location} has no column of images, only {', '.join(rows.column_names)}; --data.image-column "
                f"names one of bytes"
            )
        if others := images[1:]:
            self.notes.append(f"the images of column {images[0]} are used, and not those of {', '.join(others)}")
        return images[0]

    def _label(self, rows: Any) -> Labels:
        """The classes' names, and the label of each image, if each has one."""
        import datasets

        name = next((name for name in LABELS if name in rows.column_names), None)
        if name is None:
            return None, None
        values = rows.data.column(name).to_pylist()
        values = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values]
        feature = rows.features[name]
        named = isinstance(feature, datasets.ClassLabel)
        if not all(value is None or isinstance(value, (int, str)) for value in values):
            kinds = sorted({type(value).__name__ for value in values if value is not None})
            why = f"{name} holds {', '.join(kinds)}, neither whole numbers nor words"
        elif None in values or (named and min(values) < 0):
            why = f"not every row has a {name}"
        else:
            return (tuple(feature.names), values) if named else numbered(values)
        self.notes.append(f"{why}: trained without labels")
        return None, None


def _is_fetched(path: str) -> bool:
    """Whether a file lies where the Hub's files are fetched to, whatever links lead there."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = (cache_folder() / "arrow", datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    file = Path(path).resolve()
    return Path(path).is_absolute() and any(file.is_relative_to(Path(folder).resolve()) for folder in folders)


def _load(location: str, kind: str, files: Sequence[str]) -> tuple[Any, str]:
    """All rows, of the split "train" where there are several; and the location, with the commit if it is on the Hub."""
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        what = f"there is no folder {location}, and the Hub" if kind == "hub" else location
        raise InputError(f"{what} is read by Hugging Face's datasets: pip install 'ditlab[data]'") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of errors is said here in one line
    cache = cache_for("arrow")
    try:
        if kind == "hub":
            name, _, given = location.partition("@")
            commit = given or None
            try:
                commit = commit or huggingface_hub.HfApi().dataset_info(name, timeout=PATIENCE).sha
            except Exception:
                if not any(cache.glob(f"{name.split('/')[0]}___*")):  # else what was fetched before may do
                    raise
            rows = datasets.load_dataset(name, revision=commit, split="train", cache_dir=str(cache))
            return rows, pinned(name, commit)
        return datasets.load_dataset(kind, data_files=list(files), split="train", cache_dir=str(cache)), location
    except MemoryError:
        raise
    except Exception as error:  # of the network, the Hub, Arrow, and of what else they are made
        causes = [error, error.__cause__, error.__context__]
        if full := next((cause for cause in causes if isinstance(cause, OSError) and cause.errno in FULL), None):
            raise full from None
        if any(forbidden(cause) for cause in causes):
            raise InputError(
                f"{location} cannot be kept in {cache}, or among what is fetched from the Hub: set DITLAB_CACHE and "
                f"HF_HOME to folders that can be written"
            ) from None
        if files and all(_is_empty(file) for file in files):
            raise InputError(f"{location} has no rows") from None
        reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
        missing = f"there is no folder {location}, and from the Hub: " if kind == "hub" else f"cannot read {location}: "
        raise InputError(missing + reason) from None


def _is_empty(file: str) -> bool:
    """Whether a file is whole and holds nothing, which its reader takes ill."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return bool(parquet.read_metadata(file).num_rows == 0)
    except (OSError, pa.ArrowException):
        return False


def _as_bytes(rows: Any, column: str, location: str) -> Any:
    import datasets

    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError):  # Arrow's own errors are kinds of these
        raise InputError(f"{location}: column {column} holds no image files, but {rows.features[column]}") from None


def _column(rows: Any, names: Sequence[str]) -> list[Any] | None:
    name = next((name for name in names if name in rows.column_names), None)
    return None if name is None else rows.data.column(name).to_pylist()


def _names(rows: Any, image: str) -> list[str]:
    """Of each image: what the row or the image is called, or the number of the row."""
    import pyarrow.compute as pc

    given = _column(rows, NAMES) or pc.struct_field(rows.data.column(image), "path").to_pylist()
    names = [name if isinstance(name, str) and name else f"row {i}" for i, name in enumerate(given)]
    return [Path(name).name if name.startswith("/") else name for name in names]


def _sizes(rows: Any, image: str) -> list[int]:
    """Bytes of each image, read off Arrow's offsets; 0 where they are in a file beside the table."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(pc.struct_field(rows.data.column(image), "bytes"))
    return [length or 0 for length in lengths.to_pylist()]
