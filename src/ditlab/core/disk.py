"""The one door to the disk for what must outlast a crash, and small JSON read with care."""

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
HOST = re.sub(r"[^\w-]", "-", platform.node())[:40]  # others may write to the same file system
WINDOWS = os.name == "nt"
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
    """Wait until a file, or the names in a folder, are on the disk; Windows opens no folder, and keeps names itself."""
    before("fsync", path)
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # Windows flushes only what may be written
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
    if os.path.lexists(kept):
        remove(kept)
    rename(path, kept)


def discard(path: Path) -> None:
    """Delete what is in the way or was not finished, as far as that can be done."""
    if not os.path.lexists(path):
        return
    before("delete", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def hidden(path: Path) -> Path:
    """The name that something goes by before it is whole, or while it is deleted: this process's own, on any host."""
    return path.with_name(f".{path.name}.{os.getpid()}@{HOST}.tmp{path.suffix}")


def unfinished(folder: Path, name: str, within: Path | None = None) -> list[Path]:
    """What has a name in a folder that ``hidden`` gives to names of that pattern, in this process or another.

    Raises:
        InputError: the folder is a link that leads out of ``within``, or cannot be read.
    """
    pattern = re.compile(rf"\.(?:{name})\.[0-9]+(?:@[\w-]*)?\.tmp(?:\.\w+)?")  # earlier versions named no host
    return [folder / entry for entry in names(folder, within) if pattern.fullmatch(entry)]


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
    discard(temporary)  # what another process of that number left, or a link that somebody put there
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


def must_stay(path: Path, within: Path) -> None:
    """See that no link stands in the way from a folder to what is in it: a run may be a stranger's.

    Raises:
        InputError: there is one.
    """
    for part in path.relative_to(within).parts:
        within /= part
        if within.is_symlink():
            raise InputError(
                f"{within} is a link, and ditlab follows none out of a run: put there what it points to, or keep the "
                f"whole run elsewhere and make its folder the link"
            )


def names(folder: Path, within: Path | None = None) -> list[str]:
    """The names in a folder, in order; none where it is not there.

    Args:
        folder: of whichever.
        within: the run's folder, out of which no link is followed; None follows links.

    Raises:
        InputError: it is a link, or cannot be read.
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
    """A plain file, open to be read. Whoever opens a pipe or a device may wait for ever, so these are refused.

    Args:
        path: of the file.
        within: the run's folder, out of which no link is followed; None follows links.

    Raises:
        InputError: it is a link, or no plain file.
        OSError: it is not there, or cannot be read.
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
    """A plain file, whole; see ``opened``.

    Raises:
        InputError: it is a link, no plain file, or has more than so many bytes.
        OSError: it is not there, or cannot be read.
    """
    with opened(path, within) as stream:
        content = stream.read(min(os.fstat(stream.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise InputError(f"{path} is larger than the {most} bytes that such a file can have")
    return content


def _must_be_plain(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder, and a file is expected here")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a pipe, a socket or a device, and a file is expected here: remove it")


def is_plain(path: Path) -> bool:
    """Whether there is a plain file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def must_be_file(path: Path, within: Path | None = None) -> None:
    """See that there is a plain file, and no link on the way to it out of ``within``.

    Raises:
        InputError: there is none, or something else.
    """
    if within is not None:
        must_stay(path, within)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no file {path}") from None
    _must_be_plain(path, found)


def read_json(path: Path, within: Path | None = None) -> dict[str, Any]:
    """The object in a JSON file, which may not be large.

    Args:
        path: of the file.
        within: the run's folder, out of which no link is followed; None follows links.

    Raises:
        InputError: there is none, or something else.
    """
    must_be_file(path, within)
    content = read(path, MOST_JSON, within)
    try:
        value = json.loads(content)
    except RecursionError:
        raise InputError(f"{path} is not valid JSON: it is nested too deep") from None
    except ValueError as error:  # also bytes that are no text, and numbers of thousands of digits
        raise InputError(f"{path} is not valid JSON: {str(error).split(';')[0][:120]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A path to write to: when the block is done, it and all beside it are moved to ``out`` and beside it.

    Whatever ends the block early leaves nothing. Folders above ``out`` are made for the move.

    Raises:
        InputError: ``out`` is there already, or cannot be.
        OSError: nothing can be written there; it names ``out``.
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
    """See that nothing has that name.

    Raises:
        InputError: something has, or nothing can.
        OSError: it cannot be looked at; it names ``out``.
    """
    if "\0" in str(out):
        raise InputError(f"--out {str(out)!r} is no name of a file")
    if out.is_symlink():
        raise InputError(f"{out} is a symbolic link: choose another --out")
    try:
        out.lstat()
    except FileNotFoundError:
        return
    raise InputError(f"{out} is there already: choose another --out")


def _move(workshop: Path, out: Path) -> None:
    """Move what was made to its place, the named one at last; folders made for it go again if that fails."""
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
