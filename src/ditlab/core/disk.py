"""Files and folders written atomically, and read without following links out of a run."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from ditlab.core.errors import InputError

Operation = Literal["write", "append", "fsync", "rename", "delete"]
HOST = re.sub(r"[^\w-]", "-", platform.node())[:40]  # other hosts may write to the same file system
WINDOWS = os.name == "nt"
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)  # cannot write there
MOST_JSON = 2**22  # largest JSON file that is read, in bytes


def cache_folder() -> Path:
    """The folder of the cache: DITLAB_CACHE, or ditlab in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("DITLAB_CACHE"):
        return Path(own).expanduser().absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditlab"
    except RuntimeError:  # no home directory
        raise InputError("there is no home directory to keep a cache in; set DITLAB_CACHE to a folder") from None


def cache_for(kind: str) -> Path:
    """Make and return the folder of the cache for one kind of data.

    Raises:
        InputError: it cannot be made.
    """
    folder = cache_folder() / kind
    with kept_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Turn errors of writing into the cache into advice to move it.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        raise InputError(
            f"cannot write to the cache {folder}: {error.strerror}; set DITLAB_CACHE to another folder"
        ) from None


def forbidden(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that a file cannot be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FORBIDDEN:
            return True
        error = error.__cause__ or error.__context__
    return False


def before(operation: Operation, path: Path) -> None:
    """Called before each operation on the disk. Does nothing; tests replace it to interrupt a write."""


def write(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` write the file ``path``."""
    before("write", path)
    make(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows cannot open folders and needs no wait."""
    before("fsync", path)
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    except OSError as error:  # fsync reports no name
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within a folder, and flush the folder; an existing file is replaced."""
    before("rename", target)
    source.replace(target)
    flush(target.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder. Folders are hidden first, so that none is ever seen half deleted."""
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
    """Keep something damaged as ``damaged-NAME``, replacing what had that name."""
    kept = path.with_name(f"damaged-{path.name}")
    if os.path.lexists(kept):
        remove(kept)
    rename(path, kept)


def discard(path: Path) -> None:
    """Delete something unfinished, as far as possible."""
    if not os.path.lexists(path):
        return
    before("delete", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def hidden(path: Path) -> Path:
    """The temporary name of something being written or deleted, unique to this process on this host."""
    return path.with_name(f".{path.name}.{os.getpid()}@{HOST}.tmp{path.suffix}")


def unfinished(folder: Path, name: str, within: Path | None = None) -> list[Path]:
    """The entries of a folder that ``hidden`` could have named, in any process, for names matching a pattern.

    Raises:
        InputError: as ``names``.
    """
    pattern = re.compile(rf"\.(?:{name})\.[0-9]+(?:@[\w-]*)?\.tmp(?:\.\w+)?")  # earlier versions named no host
    return [folder / entry for entry in names(folder, within) if pattern.fullmatch(entry)]


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and flush them."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def write_atomically(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` write a hidden file beside ``path``, then rename it; on failure nothing is left over."""
    make_folder(path.parent)
    temporary = hidden(path)
    discard(temporary)  # a leftover of another process with this number, or a planted link
    try:
        write(temporary, make)
        flush(temporary)
        rename(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write files into a hidden folder, then rename it to ``path``; on failure nothing is left over."""
    temporary = begin_folder(path)
    try:
        fill(temporary)
        end_folder(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def begin_folder(path: Path) -> Path:
    """Make the empty hidden folder that ``end_folder`` renames to ``path``."""
    temporary = hidden(path)
    discard(temporary)
    make_folder(temporary)
    return temporary


def end_folder(temporary: Path, path: Path) -> None:
    """Flush everything in the hidden folder, and rename it to ``path``."""
    for entry in sorted(temporary.rglob("*")):
        flush(entry)
    flush(temporary)
    rename(temporary, path)


def must_stay(path: Path, within: Path) -> None:
    """Check that no link lies on the way from the folder ``within`` to ``path``: a run may come from a stranger.

    Raises:
        InputError: there is a link.
    """
    for part in path.relative_to(within).parts:
        within /= part
        if within.is_symlink():
            raise InputError(
                f"{within} is a link, and ditlab follows none out of a run: put there what it points to, or keep the "
                f"whole run elsewhere and make its folder the link"
            )


def names(folder: Path, within: Path | None = None) -> list[str]:
    """The sorted names in a folder; none if it does not exist.

    Args:
        folder: the folder to list.
        within: the run's folder, out of which no link is followed; None follows links.

    Raises:
        InputError: a link leads out of ``within``, or the folder cannot be read.
    """
    if within is not None:
        must_stay(folder, within)
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []
    except (PermissionError, NotADirectoryError) as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def opened(path: Path, within: Path | None = None) -> BufferedReader:
    """Open a regular file for reading. Pipes and devices are refused, as opening one may block for ever.

    Args:
        path: the file.
        within: as of ``names``.

    Raises:
        InputError: not a regular file, or a link leads out of ``within``.
        OSError: it does not exist or cannot be read.
    """
    if within is not None:
        must_stay(path, within)
    _must_be_plain(path, path.stat())
    flags = ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", *(() if within is None else ("O_NOFOLLOW",)))
    descriptor = os.open(path, sum((getattr(os, flag, 0) for flag in flags), os.O_RDONLY))
    stream = os.fdopen(descriptor, "rb")
    try:
        _must_be_plain(path, os.fstat(descriptor))
    except InputError:
        stream.close()
        raise
    return stream


def read(path: Path, most: int, within: Path | None = None) -> bytes:
    """The content of a regular file of at most ``most`` bytes; errors as of ``opened``.

    Raises:
        InputError: it is larger.
    """
    with opened(path, within) as stream:
        content = stream.read(min(os.fstat(stream.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise InputError(f"{path} is larger than {most} bytes, the most allowed for such a file")
    return content


def _must_be_plain(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder, and a file is expected here")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a pipe, a socket or a device, and a file is expected here: remove it")


def is_plain(path: Path) -> bool:
    """Whether a path is a regular file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def must_be_file(path: Path, within: Path | None = None) -> None:
    """Check that a path is a regular file, and that no link leads out of ``within``.

    Raises:
        InputError: it is not, or there is a link.
    """
    if within is not None:
        must_stay(path, within)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no file {path}") from None
    _must_be_plain(path, found)


def read_json(path: Path, within: Path | None = None) -> dict[str, Any]:
    """The object in a JSON file of at most 4 MiB; ``within`` as of ``names``.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    must_be_file(path, within)
    content = read(path, MOST_JSON, within)
    try:
        value = json.loads(content)
    except RecursionError:
        raise InputError(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # also invalid UTF-8, and numbers of thousands of digits
        raise InputError(f"{path} is not valid JSON: {str(error).split(';')[0][:120]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends, it and all files beside it move to ``out`` and beside it.

    An error leaves nothing behind. Parents of ``out`` are made by the move.

    Raises:
        InputError: ``out`` exists already or is not a valid name.
        OSError: ``out``, which the error names, cannot be written.
    """
    must_be_free(out)
    home = next((folder for folder in out.absolute().parents if folder.exists()), Path.cwd())
    workshop: Path | None = None
    try:
        workshop = Path(tempfile.mkdtemp(prefix=".ditlab-", suffix=".tmp", dir=home))
        yield workshop / out.name
        _move(workshop, out)
    except OSError as error:
        inside = workshop is None or str(error.filename or "").startswith(str(workshop))
        if not inside or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(out)) from None
    finally:
        if workshop is not None:
            shutil.rmtree(workshop, ignore_errors=True)


def must_be_free(out: Path) -> None:
    """Check that a path does not exist yet.

    Raises:
        InputError: it exists, or is not a valid name.
    """
    if "\0" in str(out):
        raise InputError(f"--out {str(out)!r} is not a valid file name")
    if out.is_symlink():
        raise InputError(f"{out} is a symbolic link: choose another --out")
    try:
        out.lstat()
    except FileNotFoundError:
        return
    raise InputError(f"{out} is there already: choose another --out")


def _move(workshop: Path, out: Path) -> None:
    """Move the files to their place, ``out`` last; on failure remove the folders made for them."""
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        must_be_free(out)
        for made in sorted(workshop.iterdir(), key=lambda path: path.name == out.name):
            made.replace(out.parent / made.name)
    except BaseException:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
