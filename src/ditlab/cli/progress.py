"""Progress on stderr: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn
from rich.text import Text

LINE_EVERY = 5.0  # seconds between plain lines


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Count(MofNCompleteColumn):
    """How many of how many; seconds, where nobody knows how many."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.elapsed or 0:.0f} s") if task.total is None else super().render(task)


class Bar:
    """A progress bar with loss, samples/s and time left."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.files: TaskID | None = None
        self.busy: TaskID | None = None

    def doing(self, what: str) -> None:
        """Show what takes long, with a bar that moves on, until something else is shown."""
        self._done()
        self.busy = self.bar.add_task(what, total=None, report="")

    def _done(self) -> None:
        if self.busy is not None:
            self.bar.remove_task(self.busy)
            self.busy = None

    def preparing(self, done: int, total: int) -> None:
        """Show how many files are read, in a bar of its own."""
        self._done()
        if self.files is None:
            self.files = self.bar.add_task("file", total=total, report="")
        self.bar.update(self.files, completed=done)

    def begin(self, done: int, steps: int) -> None:
        self._done()
        self.task = self.bar.add_task("step", total=steps, completed=done, report="")

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        self._done()
        self.bar.update(self.task, completed=step, report=_report(loss, images_per_s, seconds_left))

    def notice(self, message: str) -> None:
        """Print a line above the bar."""
        self._done()
        self.bar.console.print(message, markup=False, highlight=False)


class Lines:
    """A line every few seconds, and one for the last step."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def doing(self, what: str) -> None:
        _tell(what)

    def preparing(self, done: int, total: int) -> None:
        """Print how many files are read, if it is time."""
        if time.monotonic() - self.last >= LINE_EVERY:
            self.last = time.monotonic()
            _tell(f"read {done:,} of {total:,} files")

    def begin(self, done: int, steps: int) -> None:
        self.steps = steps
        self.last = time.monotonic()
        _tell(f"step {done}/{steps}")

    def progress(self, step: int, loss: float, images_per_s: float, seconds_left: float) -> None:
        """Print where training is, if it is time."""
        if time.monotonic() - self.last >= LINE_EVERY or step == self.steps:
            self.last = time.monotonic()
            _tell(f"step {step}/{self.steps}  {_report(loss, images_per_s, seconds_left)}")

    def notice(self, message: str) -> None:
        _tell(message)


class Silence:
    """Nothing is shown: another process of the job shows it."""

    def notice(self, *_: object) -> None:
        """Say nothing."""

    begin = progress = notice


def _report(loss: float, images_per_s: float, seconds_left: float) -> str:
    speed = f"loss {loss:.4f}  {images_per_s:,.0f} samples/s"
    if math.isnan(seconds_left):  # the first step tells nothing of the others
        return speed
    minutes, seconds = divmod(round(seconds_left), 60)
    return f"{speed}  {minutes}:{seconds:02d} left"


@contextmanager
def watching() -> Iterator[Bar | Lines]:
    """The watcher that suits stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    with Progress(
        TextColumn("{task.description}"), Count(), BarColumn(), TextColumn("{task.fields[report]}"),
        console=console,
    ) as bar:  # fmt: skip
        shown = Bar(bar)
        shown.doing("getting ready")
        yield shown
