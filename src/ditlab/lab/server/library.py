"""The runs that a lab shows, under opaque names, and the ones that are loaded."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ditlab.core.device import resolve_device
from ditlab.core.errors import InputError, Missing
from ditlab.lab.lens.answer import Answer, Look
from ditlab.lab.lens.comparing import quality
from ditlab.lab.lens.decoding import Decoding
from ditlab.lab.lens.describe import describe, describe_waiting
from ditlab.lab.lens.lens import Lens
from ditlab.lab.lens.recordings import Losses, gate_recordings, last_loss, previews, recorded
from ditlab.lab.lens.uploads import OwnImages
from ditlab.lab.server.catalogue import Catalogue, opaque
from ditlab.machine.threads import limit
from ditlab.networks.costs import multiply_accumulates
from ditlab.runs import metrics
from ditlab.runs.checkpoint import saved_steps, step_name
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import load

LOADED = 3  # lenses kept in memory, however large
MOST_LOADED = 12  # lenses kept while their weights together take no more than MOST_BYTES: columns that are compared
MOST_BYTES = 1e9
MEASURED = 1000  # figures of checkpoints that are remembered
COURSES = 8  # runs whose losses are remembered
MOST_OF_A_LINE = 1000  # bytes
THREADS = min(torch.get_num_threads(), limit())
WORTH_THREADS = 1e8  # multiply-accumulates of a pass from which more than one thread pays, also beside a training run


Weights = Literal["ema", "raw"]


class _Key(NamedTuple):
    """A loaded checkpoint: a new run may have an old one's name, and steps."""

    name: str
    begun: bytes  # see ``_begun``
    step: int
    weights: str
    written: int  # when, in nanoseconds


class Library:
    """All runs at a path: the run itself, or every run in a folder of runs.

    Args:
        path: a run's folder, its name in ``runs/``, or a folder that holds runs.
        device: "auto", "cpu", "cuda" or "mps", where networks are loaded.

    Raises:
        InputError: there is no run that has a checkpoint or is on its way to one.

    Damaged runs are left out, and told of by ``damaged``; ``first`` is the name of the first of the others. Methods
    that take the opaque name of a run raise ``Missing`` where the run or its checkpoint is not there, and
    ``InputError`` where it is damaged.
    """

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        folder = Path(path)
        self.device = device
        resolve_device(device)
        self.several = not (folder / "config.json").is_file() and any(folder.glob("*/config.json"))
        self.root = folder if self.several else RunFolder.find(path).path
        self.own = OwnImages()
        self._lenses: OrderedDict[_Key, Lens] = OrderedDict()
        self._decoding: tuple[Any, Decoding] | None = None  # the last one asked for: an autoencoder is large
        self._figures: OrderedDict[tuple[Any, ...], dict[str, Any]] = OrderedDict()
        self._whole: dict[tuple[str, int, int], int] = {}  # the newest checkpoint of a run → the step to take instead
        self._lock = threading.Lock()
        self._courses: OrderedDict[str, Losses] = OrderedDict()
        self._there = Catalogue(self.root, self.several)
        if not self.several:
            RunFolder(self.root).read_config()
        self.first = next((name for name, _, found in self._there.folders() if found.why is None), "")
        if not self.first:
            reasons = "".join(f"; {name} cannot be opened: {why}" for name, why in self.damaged()[:3])
            raise InputError(f"no run in {self.root} has a checkpoint yet{reasons}; train one: ditlab demo")

    def folders(self) -> dict[str, RunFolder]:
        """Opaque name → run, of those that can be looked at."""
        return {name: folder for name, folder, found in self._there.folders() if found.why is None}

    def damaged(self) -> list[tuple[str, str]]:
        """Name of the folder and reason, of the runs that cannot be looked at."""
        there = self._there.folders()
        return [(folder.path.name, found.why) for _, folder, found in there if found.why is not None]

    def folder(self, name: str) -> RunFolder:
        """The run of that opaque name."""
        return self._there.folder(name)

    def losses(self, name: str, after: int = -1) -> Answer:
        """The losses beyond a step, see ``Losses.after``, and the steps of pictures."""
        folder = self.folder(name)
        return Answer(self._course(name, folder).after(after), previews=repr(previews(folder)))

    def gates(self, name: str, after: int = -1) -> Answer:
        """What was recorded of gates beyond a step, see ``gate_recordings``, and the steps of pictures."""
        folder = self.folder(name)
        return Answer(gate_recordings(folder, after, self._course(name, folder)), previews=repr(previews(folder)))

    def _course(self, name: str, folder: RunFolder) -> Losses:
        """The losses of a run as far as they were read before."""
        with self._lock:
            course = self._courses.setdefault(name, Losses(folder))
            self._courses.move_to_end(name)
            if len(self._courses) > COURSES:
                self._courses.popitem(last=False)
            return course

    def lens(self, name: str, step: int | None = None, weights: Weights = "ema") -> Lens:
        """A lens on a run, loaded or from among the last ones; those outlive their checkpoint, not their run."""
        folder = self.folder(name)
        key = self._key(name, folder, step, weights)
        with self._lock:
            if key not in self._lenses:
                self._lenses[key] = Lens(folder.path, key.step, weights, self.own, self.device)
                self._forget()
            self._lenses.move_to_end(key)
            use_threads(self._lenses[key].scenes.macs)
            return self._lenses[key]

    def quality(self, name: str, step: int | None, weights: Weights, n: int, seed: int, look: Look) -> dict[str, Any]:
        """The figures of one checkpoint, see ``comparing.quality``; measured once, so the run is not kept."""
        folder = self.folder(name)
        checkpoint = self._key(name, folder, step, weights)
        key = (*checkpoint, n, seed)
        with self._lock:
            if key in self._figures:
                return self._figures[key]
        run = load(folder.path, weights, checkpoint.step, self.device)  # its own: others are answered in between
        use_threads(multiply_accumulates(run.process.network, run.shape))
        figures = quality(run, n=n, seed=seed, look=look)
        with self._lock:
            self._figures[key] = figures
            while len(self._figures) > MEASURED:
                self._figures.popitem(last=False)
        return figures

    def decoding(self, name: str) -> Decoding:
        """What turns a run's latents into pictures; it needs no network, and one autoencoder is kept."""
        folder = self.folder(name)
        config = folder.read_config()
        kind = (config.latent_space, config.data)
        use_threads(math.inf)  # decoding is worth them
        with self._lock:
            if self._decoding is None or self._decoding[0] != kind:
                self._decoding = kind, Decoding(folder, config, self.device)
            return self._decoding[1]

    def _key(self, name: str, folder: RunFolder, step: int | None, weights: str) -> _Key:
        """What a lens on that step, or on the newest, goes by: of a checkpoint that is there, or loaded."""
        steps = saved_steps(folder.checkpoints)
        step = self._newest(name, folder) if step is None else step
        begun, written = _begun(folder), None if step is None else _written(folder, step)
        if step is not None and written is not None:
            return _Key(name, begun, step, weights, written)
        with self._lock:
            for key in reversed(self._lenses):  # training has thinned out what is looked at
                if key[:4] == (name, begun, step, weights):
                    return key
        if not steps:
            raise Missing(f"{folder.path.name} has no checkpoint yet")
        raise Missing(f"{folder.path.name} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")

    def _forget(self) -> None:
        """Let go of the lenses that were not used for longest, if there are many or they are large.

        Of large ones, one is kept beside the newest.
        """
        for key in [key for key in list(self._lenses)[:-1] if _bytes(self._lenses[key]) > MOST_BYTES][:-1]:
            del self._lenses[key]
        while len(self._lenses) > LOADED:
            if len(self._lenses) <= MOST_LOADED and sum(map(_bytes, self._lenses.values())) <= MOST_BYTES:
                return
            self._lenses.popitem(last=False)

    def _newest(self, name: str, folder: RunFolder) -> int | None:
        """The newest step whose checkpoint is whole: read through once for each new one."""
        newest = folder.step
        written = None if newest is None else _written(folder, newest)
        if newest is None or written is None:
            return None
        key = (name, newest, written)
        with self._lock:
            if key not in self._whole:
                whole = folder.whole_step
                self._whole[key] = newest if whole is None else whole
            return self._whole[key]

    def catalogue(self) -> dict[str, Any]:
        """The runs, a few words about each, and the damaged ones with the reason."""
        there = [({"id": name, "name": folder.path.name}, found) for name, folder, found in self._there.folders()]
        return {
            "runs": [run | {"step": found.step, **found.kinds} for run, found in there if found.why is None],
            "damaged": [{"name": run["name"], "why": found.why} for run, found in there if found.why is not None],
        }

    def describe(self, name: str, step: int | None, weights: Weights) -> dict[str, Any]:
        """All about one run; see ``describe``."""
        folder = self.folder(name)
        found = describe_run(folder, self.lens(name, step, weights) if saved_steps(folder.checkpoints) else None)
        if found["step"] is not None:  # it may be thinned out while it is looked at
            found["checkpoints"] = sorted({*found["checkpoints"], found["step"]})
        return found


def describe_run(folder: RunFolder, lens: Lens | None) -> dict[str, Any]:
    """All about a run, which has no lens before its first checkpoint."""
    return {
        "id": opaque(folder.path),
        "name": folder.path.name,
        "path": str(folder.path),
        "checkpoints": saved_steps(folder.checkpoints),
        "previews": previews(folder),
        "last_loss": last_loss(folder),
        "last_recording": max(recorded(folder), default=None),
        **(describe_waiting(folder) if lens is None else describe(lens)),
    }


def use_threads(macs: float) -> None:
    """More than one thread where a pass of that many multiply-accumulates is worth it."""
    torch.set_num_threads(THREADS if macs > WORTH_THREADS else 1)


def _begun(folder: RunFolder) -> bytes:
    """The first line of a run's metrics, whose seconds tell it from another run of that name; empty without."""
    try:
        if not metrics.there(folder.metrics_file):
            return b""
        with folder.metrics_file.open("rb") as stream:
            return stream.readline(MOST_OF_A_LINE)
    except (InputError, OSError):
        return b""


def _written(folder: RunFolder, step: int) -> int | None:
    """When a checkpoint was written, in nanoseconds; None if it is not there."""
    try:
        return (folder.checkpoints / step_name(step)).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _bytes(lens: Lens) -> int:
    """What the weights of a lens take in memory."""
    return sum(weight.nbytes for weight in lens.process.parameters())
