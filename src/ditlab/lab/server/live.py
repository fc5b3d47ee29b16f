"""What is new in a run while it is being trained, from its files alone, and the stream that tells a page of it.

The process that trains is not asked and does not know: a look costs some calls of ``stat``, and reads what was added to
the metrics since the last one.
"""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from ditlab.core.errors import InputError
from ditlab.lab.lens.recordings import outline, previews, recorded
from ditlab.runs import metrics
from ditlab.runs.checkpoint import saved_steps
from ditlab.runs.folder import RunFolder

SECONDS_BETWEEN_LOOKS = 1.0
HEARTBEAT = 15  # quiet looks after which a comment goes out, so that a client which is gone is found out
SETTLED = 2.0  # seconds after which a change of a folder is certain to have another time than the last one


class Watch:
    """Looks at a run's files, and says what has changed; whoever asks knows the loss up to the step ``after``."""

    def __init__(self, folder: RunFolder, after: int = -1) -> None:
        self.folder = folder
        self._metrics = _Metrics(folder.metrics_file, after)
        self._config = Remembered(folder.config_file, folder.read_config)
        self._steps = {
            "checkpoints": Remembered(folder.checkpoints, lambda: saved_steps(folder.checkpoints)),
            "previews": Remembered(folder.samples, lambda: previews(folder)),
            "recordings": Remembered(folder.probes, lambda: recorded(folder)),
        }
        self._told: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """The step of the last loss that was told, or −1."""
        return self._metrics.last

    def look(self) -> dict[str, Any]:
        """What is different from the last look, by name; all of it the first time.

        ``training`` (whether a process holds the run's lock), ``steps`` (how far it is to go), ``step`` and ``loss`` of
        the last line, ``seconds_left`` (null where nobody trains, or no speed is known yet), ``checkpoints`` and
        ``previews`` (their steps), ``recorded`` (the last step whose gates were recorded), ``losses`` ((step, loss),
        new ones alone, and of many those by which a line is drawn), and ``cut`` where steps that had been told of are
        no longer there.

        Raises:
            InputError, OSError: the run is gone, or its configuration damaged.
        """
        config = self._config()
        losses, cut = self._metrics.read()
        line = self._metrics.line
        recordings = self._steps["recordings"]()
        now = {
            "training": self.folder.is_locked,
            "steps": config.steps,
            "step": line.get("step"),
            "loss": line.get("loss"),
            "checkpoints": self._steps["checkpoints"](),
            "previews": self._steps["previews"](),
            "recorded": recordings[-1] if recordings else None,
        }
        speed = line.get("images_per_s")
        left = now["training"] and speed and max(0, config.steps - line["step"]) * config.batch_size / speed
        now["seconds_left"] = round(left) if left else None
        news = {name: value for name, value in now.items() if name not in self._told or self._told[name] != value}
        self._told = now
        return news | ({"losses": losses} if losses else {}) | ({"cut": True} if cut else {})


async def stream(watch: Watch, left: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """Server-sent events: one for each look that found something. Ends when the client has left, or the run is gone.

    The id of an event is the step up to which the loss was told; a browser that lost the connection sends it back.
    """
    quiet = 0
    with suppress(InputError, OSError):
        while not await left():
            news = await run_in_threadpool(watch.look)
            quiet = 0 if news else quiet + 1
            if news:
                yield f"id: {watch.step}\ndata: {json.dumps(news, allow_nan=False)}\n\n".encode()
            elif quiet % HEARTBEAT == 0:
                yield b":\n\n"
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


class Remembered:
    """What was made of a file or folder, until its size or its times of change are others."""

    def __init__(self, path: Path, make: Callable[[], Any]) -> None:
        self._path, self._make = path, make
        self._seen: tuple[int, ...] | None = ()
        self._value: Any = None

    def __call__(self) -> Any:
        try:
            found = self._path.stat()
            seen = (found.st_size, found.st_ctime_ns, found.st_mtime_ns)
        except OSError:
            seen = None
        if seen != self._seen:
            self._value = self._make()
            settled = seen is None or time.time_ns() - max(seen[1:]) > SETTLED * 1e9
            self._seen = seen if settled else ()  # a second change may bear the same time: look again
        return self._value


class _Metrics:
    """The losses that were added to a run's metrics."""

    def __init__(self, file: Path, after: int) -> None:
        self._file, self.last = file, after
        self._seen: tuple[int, ...] | None = None  # inode, size and time of change at the last look
        self._lines = metrics.Growing(file)
        self.line: dict[str, Any] = {}  # the newest value of each name

    def read(self) -> tuple[list[tuple[int, float]], bool]:
        """Step and loss of new lines, and whether lines that were told of are gone: then all come again."""
        try:
            found = self._file.lstat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return [], False
            cut = self._seen is None and self._begin()
            lines = self._lines.added()
            if lines is None:
                cut = self._forget()
                lines = self._lines.added() or iter(())
        except FileNotFoundError:
            return [], self._forget()
        losses = self._take(lines)
        self._seen = seen
        return losses, cut

    def _begin(self) -> bool:
        """Go to the lines that the one who asks does not know; whether some of those that it knows are gone."""
        newest = next(metrics.newest(self._file), {"step": -1})
        if newest["step"] < self.last:
            return self._forget()
        if self.last >= 0:
            self._lines.pass_over(self.last)
        return False

    def _take(self, lines: Iterator[dict[str, Any]]) -> list[tuple[int, float]]:
        """The losses of lines beyond the last step that was told of: of many, those by which a line is drawn."""
        steps, losses = array("q"), array("d")
        for line in lines:
            self.line |= {name: line[name] for name in ("step", "loss", "images_per_s") if name in line}
            if "loss" in line and line["step"] > self.last:
                steps.append(line["step"])
                losses.append(line["loss"])
        self.last = max(steps, default=self.last)
        return [(steps[i], losses[i]) for i in outline(losses)]

    def _forget(self) -> bool:
        """Begin anew; whether anything had been told."""
        told = self.last >= 0
        self._seen, self.line, self.last = None, {}, -1
        self._lines.forget()
        return told
