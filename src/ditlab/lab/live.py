"""What is new in a run while it is being trained, from its files alone, and the stream that tells a page of it.

The process that trains is not asked and does not know: a look costs some calls of ``stat``, and reads what was added to
the metrics since the last one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from ditlab.errors import InputError
from ditlab.lab.recordings import previews, recorded
from ditlab.run import RunFolder
from ditlab.training.checkpoint import saved_steps

SECONDS_BETWEEN_LOOKS = 1.0
HEARTBEAT = 15  # quiet looks after which a comment goes out, so that a client which is gone is found out
KNOWN_AGAIN = 256  # bytes at the end of what was read of a file, by which it is known again
SETTLED = 2.0  # seconds after which a change of a folder is certain to have another time than the last one


class Watch:
    """Looks at a run's files, again and again, and says what has changed.

    Args:
        folder: the run.
        after: the step up to which the one who asks knows the loss.
    """

    def __init__(self, folder: RunFolder, after: int = -1) -> None:
        self.folder = folder
        self._metrics = _Metrics(folder.metrics_file, after)
        self._config = _Remembered(folder.config_file, folder.read_config)
        self._steps = {
            "checkpoints": _Remembered(folder.checkpoints, lambda: saved_steps(folder.checkpoints)),
            "previews": _Remembered(folder.samples, lambda: previews(folder)),
            "recordings": _Remembered(folder.probes, lambda: recorded(folder)),
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
        new ones alone), and ``cut`` where steps that had been told of are no longer there.

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


class _Remembered:
    """What was made of a file or folder, until its time of change is another."""

    def __init__(self, path: Path, make: Callable[[], Any]) -> None:
        self._path, self._make = path, make
        self._changed: int | None = -1
        self._value: Any = None

    def __call__(self) -> Any:
        try:
            changed = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            changed = None
        if changed != self._changed:
            self._value = self._make()
            settled = changed is None or time.time_ns() - changed > SETTLED * 1e9
            self._changed = changed if settled else -1  # a second change may bear the same time: look again
        return self._value


class _Metrics:
    """The lines that were added to a run's metrics."""

    def __init__(self, file: Path, after: int) -> None:
        self._file, self.last = file, after
        self._seen: tuple[int, ...] | None = None  # inode, size and time of change at the last look
        self._read, self._end = 0, b""  # how many bytes were read, and what the last of them were
        self.line: dict[str, Any] = {}  # the newest value of each name

    def read(self) -> tuple[list[tuple[int, float]], bool]:
        """Step and loss of new lines, and whether lines that were told of are gone: then all come again."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return [], self._forget()
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return [], False
        self._seen = seen
        begun, cut = self._read > 0, False
        lines = self._added()
        if lines is None or (not begun and self.last > max((line["step"] for line in lines), default=-1)):
            cut = self._forget()
            lines = self._added() or []
        for line in lines:
            self.line |= {name: line[name] for name in ("step", "loss", "images_per_s") if name in line}
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line and line["step"] > self.last]
        self.last = max((step for step, _ in losses), default=self.last)
        return losses, cut

    def _forget(self) -> bool:
        """Begin anew; whether anything had been told."""
        told = self.last >= 0
        self._seen, self._read, self._end, self.line, self.last = None, 0, b"", {}, -1
        return told

    def _added(self) -> list[dict[str, Any]] | None:
        """Whole lines from where reading stopped, without damaged ones; None if what was read is no longer there.

        Lines end in seconds of training, so that another file, also one that took this one's inode and has gone
        further, has others where reading stopped.
        """
        with self._file.open("rb") as stream:
            stream.seek(self._read - len(self._end))
            if stream.read(len(self._end)) != self._end:
                return None
            text, newline, _ = stream.read().rpartition(b"\n")
        self._read += len(text + newline)
        self._end = (self._end + text + newline)[-KNOWN_AGAIN:]
        lines = []
        for one in text.splitlines():
            with suppress(ValueError, RecursionError):
                line = json.loads(one)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
        return lines
