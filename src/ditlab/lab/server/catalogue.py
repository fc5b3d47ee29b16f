"""Which runs there are at a place, and a few words about each; of those that have not changed nothing is read again."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ditlab.core.errors import InputError, Missing, first_line
from ditlab.lab.server.live import Remembered
from ditlab.runs.folder import RunFolder


class Found(NamedTuple):
    """A run that can be looked at, or the reason ``why`` it cannot."""

    step: int | None
    kinds: dict[str, str]
    why: str | None = None


class Catalogue:
    """The runs of a folder, if they are ``several``, or one alone, under opaque names. For any thread."""

    def __init__(self, root: Path, several: bool) -> None:
        self._root, self._several = root, several
        self._entries: dict[str, _Entry] = {}  # by path
        self._named: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def folders(self) -> Iterator[tuple[str, RunFolder, Found]]:
        """Opaque name, folder and what was found, of all that have begun, in order of their paths."""
        for name, entry in self._look_around().items():
            if (found := entry.found()) is not None:
                yield name, entry.folder, found

    def folder(self, name: str) -> RunFolder:
        """The run of that opaque name.

        Raises:
            Missing: there is none.
            InputError: it is damaged; the reason is given.
        """
        entry = self._named.get(name) or self._look_around().get(name)
        found = entry.found() if entry is not None else None
        if entry is None or found is None:
            raise Missing("no such run; reload the page")
        if found.why is not None:
            raise InputError(f"{entry.folder.path.name} cannot be opened: {found.why}")
        return entry.folder

    def _look_around(self) -> dict[str, _Entry]:
        """All that have a configuration, which is not read, by opaque name."""
        with self._lock:
            paths = [str(self._root)]
            if self._several:
                paths = []
                with suppress(OSError), os.scandir(self._root) as there:
                    paths = sorted(entry.path for entry in there if _configured(entry.path))
            self._entries = {path: self._entries.get(path) or _Entry(path) for path in paths}
            self._named = {entry.name: entry for entry in self._entries.values()}
            return self._named


class _Entry:
    """A folder that has a configuration."""

    def __init__(self, path: str) -> None:
        self.folder = RunFolder(path)
        self.name = opaque(self.folder.path)
        self._step = Remembered(self.folder.checkpoints, lambda: self.folder.step)
        self._config = Remembered(self.folder.config_file, self._read)
        self._lock = threading.Lock()

    def found(self) -> Found | None:
        """What it is; None where nothing is written down yet, or any more."""
        with self._lock:
            try:
                if not _configured(str(self.folder.path)):
                    return None
                step = self._step()
                if step is None and not (self.folder.metrics_file.exists() or self.folder.is_locked):
                    return None
                kinds: dict[str, str] | str = self._config()
            except Exception as error:  # whatever is in a folder of somebody else, the others are shown
                kinds = str(error) if isinstance(error, InputError) else first_line(error, 120, kind=True)
            return Found(None, {}, kinds) if isinstance(kinds, str) else Found(step, kinds)

    def _read(self) -> dict[str, str] | str:
        """The kinds of its parts, or why they cannot be known."""
        try:
            config: Any = self.folder.read_config()
            return {part: getattr(config, part).kind for part in ("data", "network", "process")}
        except (InputError, OSError) as error:
            return str(error)


def opaque(path: Path) -> str:
    """A run's name in addresses, which says nothing of where it lies."""
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:12]


def _configured(path: str) -> bool:
    """Whether a folder has a configuration, or will not say so."""
    try:
        os.lstat(f"{path}/config.json")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
