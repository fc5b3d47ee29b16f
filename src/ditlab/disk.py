"""The one door to the disk for what must outlast a crash, and small JSON read with care."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ditlab.errors import InputError

Operation = Literal["write", "append", "fsync", "rename", "delete"]
HOST = re.sub(r"[^\w-]", "-", platform.node())[:40]  # others may write to the same file system
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)  # a folder may not be made there
MOST_JSON = 2**22  # bytes of a JSON file that are read


def cache_folder() -> Path:
    """Where what is prepared once is kept: DITLAB_CACHE, or ditlab in XDG_CACHE_HOME, or in ~/.cache."""
    if own := os.environ.get("DITLAB_CACHE"):
        return Path(own).expanduser().absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditlab"
    except RuntimeError:  # nobody's home is known
        raise InputError("there is no home directory to keep a cache in; set DITLAB_CACHE to a folder") from None


def cache_for(kind: str) -> Path:
    """The folder of the cache for one kind of things, which is made.

    Raises:
        InputError: something else is in the way, or nothing may be written there.
    """
    folder = cache_folder() / kind
    with kept_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Around whatever writes into a folder of the cache.

    Raises:
        InputError: it is not allowed to; the line says how to have the cache elsewhere.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        raise InputError(
            f"what is prepared cannot be kept in {folder}: {error.strerror}; set DITLAB_CACHE to a folder"
        ) from None


def forbidden(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is that a file may not be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FORBIDDEN:
            return True
        error = error.__cause__ or error.__context__
    return False


def before(operation: Operation, path: Path) -> None:
    """Called before each operation on the disk, and does nothing: this is where tests stop the writer."""


def write(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` write the file ``path``."""
    before("write", path)
    make(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    before("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # fsync does not know the name
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give something on the disk another name in the same folder, for good; a file in its way is replaced."""
    before("rename", target)
    source.replace(target)
    flush(target.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder. A folder is hidden first, so that nobody ever sees a part of it under its name."""
    if path.is_dir() and not path.is_symlink():
        gone = path if path.name.startswith(".") else hidden(path)
        if gone != path:
            discard(gone)
            rename(path, gone)
        before("delete", gone)
        shutil.rmtree(gone)
    else:
        before("delete", path)
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Keep something damaged for a look, as ``damaged-`` and its name, in the place of what was there before."""
    kept = path.with_name(f"damaged-{path.name}")
    if kept.exists():
        remove(kept)
    rename(path, kept)


def discard(path: Path) -> None:
    """Delete what is in the way or was not finished, as far as that can be done."""
    if not path.exists():
        return
    before("delete", path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def hidden(path: Path) -> Path:
    """The name that something goes by before it is whole, or while it is deleted: this process's own, on any host."""
    return path.with_name(f".{path.name}.{os.getpid()}@{HOST}.tmp{path.suffix}")


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, for good."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def write_atomically(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` write a hidden file beside ``path``, then move it there; on failure nothing is left over."""
    make_folder(path.parent)
    temporary = hidden(path)
    try:
        write(temporary, make)
        flush(temporary)
        rename(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` put files into a hidden folder, then move it to ``path``: whole under that name, or not there."""
    temporary = begin_folder(path)
    try:
        fill(temporary)
        end_folder(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def begin_folder(path: Path) -> Path:
    """The hidden folder, now empty, that is to become ``path``."""
    temporary = hidden(path)
    discard(temporary)
    make_folder(temporary)
    return temporary


def end_folder(temporary: Path, path: Path) -> None:
    """Wait until all that is in the hidden folder is on the disk, and move it to ``path``."""
    for entry in sorted(temporary.rglob("*")):
        flush(entry)
    flush(temporary)
    rename(temporary, path)


def must_be_file(path: Path) -> None:
    """See that there is a file.

    Raises:
        InputError: there is none, or something else.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is expected here")
    if not path.is_file():
        raise InputError(f"there is no file {path}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, which may not be large.

    Raises:
        InputError: there is none, or something else.
    """
    must_be_file(path)
    with path.open("rb") as stream:
        content = stream.read(MOST_JSON + 1)
    if len(content) > MOST_JSON:
        raise InputError(f"{path} is larger than the {MOST_JSON} bytes that such a file can have")
    try:
        value = json.loads(content)
    except RecursionError:
        raise InputError(f"{path} is not valid JSON: it is nested too deep") from None
    except ValueError as error:  # also bytes that are no text, and numbers of thousands of digits
        raise InputError(f"{path} is not valid JSON: {str(error).split(';')[0][:120]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value
