"""What ``ditlab sample`` is asked for: classes by name or number, and where the samples go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.config import Config
from ditlab.core.errors import InputError, printable

if TYPE_CHECKING:
    from ditlab.runs.run import Run

LISTED = 20  # classes in a line


def classes_of(config: Config) -> Sequence[str]:
    """Names of the labels, in order; none where they have no names."""
    return getattr(config.data, "classes", None) or ()


def listed(classes: Sequence[str]) -> str:
    """Classes with their numbers, in a line: ``0 cat, 1 dog``."""
    more = f" and {len(classes) - LISTED:,} more" if len(classes) > LISTED else ""
    return printable(", ".join(f"{i} {name}" for i, name in enumerate(classes[:LISTED]))) + more


def label_of(run: Run, word: str) -> int:
    """The label of a class by its name or, where no class has that name, by its number.

    Raises:
        InputError: there is no such class; those that are there are listed.
    """
    if run.num_classes is None:
        raise InputError(f"{run.folder.path} was trained without labels; leave the label out")
    classes = classes_of(run.config)
    if word in classes:
        return classes.index(word)
    if word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < run.num_classes:
        return int(word)
    names = f": {listed(classes)}" if classes else ""
    raise InputError(f"labels of {run.folder.path} run from 0 to {run.num_classes - 1}, not {word}{names}")


@contextmanager
def classes_after_help(arguments: Sequence[str]) -> Iterator[None]:
    """Where help is printed in the block, print the classes of the run that is named, too."""
    try:
        yield
    except SystemExit:
        if {"-h", "--help"} & set(arguments) and not arguments[0].startswith("-"):
            from ditlab.runs.folder import RunFolder

            with suppress(InputError):
                if classes := classes_of(RunFolder.find(arguments[0]).read_config()):
                    print(f"Classes of {printable(arguments[0])}: {listed(classes)}")
        raise


def check_out(out: str | None, dtype: str) -> None:
    """Refuse, before anything is drawn, what cannot be written.

    Raises:
        InputError: the name is of no picture, array or new folder, or a picture is asked for as an array.
    """
    suffix = "" if out is None else Path(out).suffix
    if out is not None and is_folder(out):
        if Path(out).is_dir() and any(Path(out).iterdir()):
            raise InputError(f"--out {out} is not empty: name a new folder")
    elif out is not None and suffix not in (".png", ".npz"):
        raise InputError(f"--out {out} must end in .png (a picture), .npz (an array) or / (a folder of pictures)")
    if dtype == "uint8" and suffix != ".npz":
        raise InputError("--dtype uint8 is of an array: add --out FILE.npz; pictures have 8 bits in any case")


def is_folder(out: str) -> bool:
    """Whether ``--out`` names a folder, which may have to be made."""
    return out.endswith(("/", os.sep)) or Path(out).is_dir()
