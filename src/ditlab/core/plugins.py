"""Modules of your own that register parts, as ``--plugin`` names them. Imports no torch.

Only whoever types a command, or writes a program, has code imported: a run's configuration names the modules that it
needs, and is refused without them.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from ditlab.core.errors import InputError, first_line

GIVEN: list[str] = []  # on this command line, as they were named


def load(names: Iterable[str]) -> None:
    """Import modules, and remember them as those of this command line.

    Each is named as Python does, with the current folder in its path, or by the path of a ``.py`` file, whose folder is
    searched first. Processes that this one spawns find the modules in the same places.

    Raises:
        InputError: a module is not there, or its code fails; the line is given.
    """
    GIVEN.clear()
    for name in names:
        _import(name)
        GIVEN.append(name)


def must_be_loaded(names: object, run: Path) -> None:
    """Refuse a run whose parts are registered by modules that were not imported.

    Raises:
        InputError: there is such a module; the message names the flag.
    """
    named = [str(name) for name in names] if isinstance(names, list) else []
    given = {_module(name).rpartition(".")[2] for name in GIVEN}
    missing = [name for name in named if _module(name) not in sys.modules]
    missing = [name for name in missing if _module(name).rpartition(".")[2] not in given]
    if missing:
        flags = " ".join(f"--plugin {name[:200]}" for name in missing)
        raise InputError(f"{run} was trained with code that is not loaded: add {flags}")


def _module(name: str) -> str:
    """The name that Python knows a module by."""
    return Path(name).stem if name.endswith(".py") else name


def _import(name: str) -> None:
    if not name:
        raise InputError("--plugin names nothing: give a module or a file, as --plugin parts.py")
    file = Path(name) if name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise InputError(f"--plugin {name}: there is no such file")
    folder = str(Path.cwd() if file is None else file.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _module(name)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise InputError(
                f"--plugin {name}: there is no module of that name here or installed; name a file as {module}.py"
            ) from None
        raise InputError(f"--plugin {name} fails{_where(error)}: {first_line(error, kind=True)}") from None
    if file is not None and Path(found.__file__ or "").resolve() != file.resolve():
        raise InputError(f"--plugin {name}: Python has another module named {module}; give the file another name")


def _where(error: BaseException) -> str:
    """The line of the user's own code that an import has failed in, as far as it is known."""
    if isinstance(error, SyntaxError):
        return f" in {error.filename}, line {error.lineno}"
    machinery = (__file__, importlib.__file__)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<frozen", *machinery))
    ]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""
