"""Metrics and pictures shown elsewhere too, in TensorBoard or Weights & Biases. metrics.jsonl is always written."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from ditlab.config import Config
from ditlab.core import disk
from ditlab.core.errors import InputError, first_line, printable
from ditlab.runs.folder import RunFolder

Kind = Literal["tensorboard", "wandb"]
LOGIN, START = 15, 60  # seconds that Weights & Biases is waited for


@runtime_checkable
class Tracker(Protocol):
    """Someone who is sent what a run leaves behind."""

    def line(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """The preview of a step, a PNG file."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def flat(line: dict[str, Any]) -> dict[str, float | str]:
    """A line without its step, nested entries under names such as "gates/attn/0"."""
    found: dict[str, float | str] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict | list):
            for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}/{key}", entry)
        else:
            found[name] = value

    for name, value in line.items():
        if name != "step":
            walk(name, value)
    return found


class TensorBoard:
    """Event files in ``RUN/tensorboard``, on the disk with every line.

    Args:
        folder: of the run.
        done: the step that training goes on from; what was written of later ones is taken back. −1 is all of it.
    """

    def __init__(self, folder: RunFolder, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        where = folder.path / "tensorboard"
        # Readers take the files in the order of their names, which begin with the second: within one it is chance.
        while any(where.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.02)
        self.writer: Any = SummaryWriter(str(where), purge_step=done + 1)

    def line(self, line: dict[str, Any]) -> None:
        for name, value in flat(line).items():
            add = self.writer.add_text if isinstance(value, str) else self.writer.add_scalar
            add(name, value, line["step"])
        self.writer.flush()

    def picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image("preview", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, whose identity is kept in ``RUN/wandb-id`` so that a resumed run goes on with it.

    Its steps only rise: what it knows of steps beyond the checkpoint stays, and the same lines, sent again, are not
    taken. Where it reports to is up to its own settings, such as WANDB_PROJECT and WANDB_MODE=offline; what it
    keeps is in WANDB_DIR, or in the run.

    Args:
        folder: of the run.
        config: of the run, shown beside it.
        resumed: go on with the run of before.
    """

    def __init__(self, folder: RunFolder, config: Config, resumed: bool) -> None:
        import wandb

        kept = folder.path / "wandb-id"
        known = resumed and disk.is_plain(kept)
        name = disk.read(kept, 100, folder.path).decode().strip() if known else secrets.token_hex(4)
        disk.write_atomically(kept, lambda path: path.write_text(name + "\n"))
        self.wandb: Any = wandb
        settings = wandb.Settings(console="off", silent=True, login_timeout=LOGIN, init_timeout=START)
        told, where = config.model_dump(mode="json"), os.environ.get("WANDB_DIR") or str(folder.path)
        self.run: Any = wandb.init(
            id=name, name=folder.path.name, dir=where, config=told, resume="allow", settings=settings
        )

    def line(self, line: dict[str, Any]) -> None:
        self.run.log(flat(line), step=line["step"])

    def picture(self, step: int, path: Path) -> None:
        self.run.log({"preview": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class Guarded:
    """Passes all on to a tracker, until that fails: then it says so once, and training goes on without it."""

    def __init__(self, kind: str, make: Callable[[], Tracker], notice: Callable[[str], None]) -> None:
        self.kind, self.notice = kind, notice
        self.tracker: Tracker | None = None
        self._try(lambda: setattr(self, "tracker", make()))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is, it is not worth a training
            self.tracker = None
            why = printable(first_line(error, kind=True))
            self.notice(f"{self.kind} is left out from here on ({why}); metrics.jsonl has it all")

    def line(self, line: dict[str, Any]) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.line(line))

    def picture(self, step: int, path: Path) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.picture(step, path))

    def close(self) -> None:
        if (tracker := self.tracker) is not None:
            self._try(tracker.close)


class Nobody:
    """Is sent all, and keeps nothing."""

    def line(self, line: dict[str, Any]) -> None:
        pass

    def picture(self, step: int, path: Path) -> None:
        pass

    def close(self) -> None:
        pass


def must_be_installed(kind: Kind | None) -> None:
    """See that the package of a tracker is there.

    Raises:
        InputError: it is not.
    """
    if kind is not None and find_spec(kind) is None:
        raise InputError(f"--track {kind} needs a package that is not installed: pip install 'ditlab[{kind}]'")


@contextmanager
def tracking(folder: RunFolder, config: Config, done: int | None, notice: Callable[[str], None]) -> Iterator[Tracker]:
    """The tracker that ``config.track`` names, closed at the end; none of its failures comes through.

    Args:
        folder: of the run.
        config: of the run.
        done: the step of the checkpoint that training goes on from; None where it begins.
        notice: is told of a failure, in one line.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder, -1 if done is None else done),
        "wandb": lambda: WeightsAndBiases(folder, config, done is not None),
    }
    tracker: Tracker = Nobody() if config.track is None else Guarded(config.track, makers[config.track], notice)
    try:
        yield tracker
    finally:
        tracker.close()
