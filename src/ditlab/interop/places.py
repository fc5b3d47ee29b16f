"""Where a result appears: whole under its name, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditlab.errors import InputError


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
