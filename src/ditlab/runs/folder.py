"""The run folder: where a training run keeps its configuration, metrics, checkpoints, pictures and recordings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ditlab.config import Config
from ditlab.core import disk, locks, plugins
from ditlab.core.errors import ConfigError, InputError
from ditlab.recipes import unguided
from ditlab.runs import metrics
from ditlab.runs.checkpoint import LATEST, latest_step, newest_whole, point, step_name, step_of, verified

PATIENCE = 0.5  # seconds: who asks whether a run is being trained holds its lock for some microseconds


# What training calls the things in each folder of a run, after their step: nothing else is ever deleted there.
MADE = {"samples": r"\.png", "probes": r"\.safetensors", "averages": r"\.safetensors"}


MADE |= {"failures": r"\.(json|safetensors)", "checkpoints": ""}


STEP = "step-[0-9]{8}"


BESIDE = r"config\.json|metrics\.jsonl|quarantine\.jsonl|eval\.json|eval(-nearest)?\.png|wandb-id"  # beside these


LIBRARY = r"\.tmp[A-Za-z0-9]{6}"  # what the safetensors library writes before it gives it its name


class RunFolder:
    """The files of a run, by name. Nothing is read or written until asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.probes = self.path / "probes"
        self.averages = self.path / "averages"
        self.failures = self.path / "failures"
        self.quarantine_file = self.path / "quarantine.jsonl"
        self.lock_file = self.path / ".lock"

    @classmethod
    def find(cls, name: str | Path) -> RunFolder:
        """The run at that path, or of that name in ``runs/``.

        Raises:
            InputError: there is none; the runs that are there are listed.
        """
        if not _is_text(name):
            raise InputError(f"{str(name)!r} is not UTF-8, and no checkpoint can be read from there: rename the folder")
        for path in (Path(name), Path("runs") / name):
            if os.path.lexists(path / "config.json"):
                return cls(path)
        there = sorted(str(file.parent) for file in Path("runs").glob("*/config.json"))
        raise InputError(
            f"no run at {name}; " + (f"there are {', '.join(there)}" if there else "train one: ditlab demo")
        )

    def read_config(self) -> Config:
        """The configuration; runs that predate weight averaging have no averages.

        Sampling is not guided where labels were never dropped, so that there is nothing to guide away from.

        Raises:
            InputError: the file is not a valid configuration, and the field is named; or the run needs a plug-in.
        """
        try:
            found = disk.read_json(self.config_file, self.path)
            plugins.must_be_loaded(found.get("plugins"), self.path)
            config = Config.model_validate({"averages": (), **found})
        except ConfigError as error:
            raise InputError(f"{self.config_file}: {error}") from None
        never = config.process.condition_dropout == 0
        return config.model_copy(update={"sampling": unguided(config.sampling)}) if never else config

    @property
    def knows_averages(self) -> bool:
        """Whether the configuration says which averages are tracked, be it none."""
        return not self.config_file.exists() or "averages" in disk.read_json(self.config_file, self.path)

    def write_config(self, config: Config) -> None:
        """Write the configuration, whole or not at all."""
        text = config.model_dump_json(indent=2) + "\n"
        disk.write_atomically(self.config_file, lambda path: path.write_text(text, encoding="utf-8"))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to the metrics."""
        metrics.append(self.metrics_file, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of the metrics; what a crash has damaged at their end is left out.

        Raises:
            InputError: a line before good ones is damaged.
        """
        return list(metrics.read(self.metrics_file))

    def trained_beyond(self, step: int) -> bool:
        """Whether metrics tell of later steps."""
        return any(line["step"] > step for line in islice(metrics.newest(self.metrics_file), 1))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who writes into this run. The system lets go of it when the process ends, however it does.

        Raises:
            InputError: another process writes into it, or what is to be written would follow a link out of it.
        """
        disk.make_folder(self.path)
        for name in (*MADE, "tensorboard", "wandb"):
            disk.must_stay(self.path / name, self.path)
        for file in (self.config_file, self.metrics_file):
            if os.path.lexists(file):
                disk.must_be_file(file, self.path)
        with locks.alone(self.lock_file, f"{self.path} is being trained", PATIENCE):
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a process is writing into this run, as training does; asking leaves nothing behind."""
        return locks.is_held(self.lock_file)

    def cut(self, step: int) -> None:
        """Drop metrics, pictures and recordings of later steps than ``step``, and what is left unfinished.

        Later checkpoints, which can only be damaged ones, are set aside as ``damaged-step-...``. For whoever holds the
        lock, and has loaded that step's checkpoint.
        """
        metrics.cut(self.metrics_file, step)
        if step < 0:
            disk.discard(self.checkpoints / LATEST)
        elif self.step != step:
            point(self.checkpoints, step)
        for name in MADE:
            for entry in self.made(name):
                if entry.name[: len(step_name(0))] > step_name(step):
                    disk.set_aside(entry) if name == "checkpoints" else disk.remove(entry)
        self.sweep()

    def sweep(self) -> None:
        """Clear away what ditlab left unfinished, by a kill for example; for whoever holds the lock."""
        left = disk.unfinished(self.path, BESIDE)
        left += [self.path / name for name in disk.names(self.path) if re.fullmatch(r"\.stacks(-[0-9]+)?\.txt", name)]
        for name, ending in MADE.items():
            left += disk.unfinished(self.path / name, f"(damaged-)?{STEP}{ending}|{LATEST}", self.path)
            left += [entry for entry in self.made(name, LIBRARY) if disk.is_plain(entry)]
        for entry in left:
            disk.remove(entry)

    def made(self, name: str, pattern: str | None = None) -> list[Path]:
        """What training made in one of the run's folders, by its names, in their order: no links, nor other things.

        Args:
            name: of the folder, such as "samples".
            pattern: of other names than training gives.

        Raises:
            InputError: the folder is a link, or cannot be read.
        """
        pattern = STEP + MADE[name] if pattern is None else pattern
        found = [self.path / name / entry for entry in disk.names(self.path / name, self.path)]
        called = [entry for entry in found if re.fullmatch(pattern, entry.name)]
        return called if name == "checkpoints" else [entry for entry in called if disk.is_plain(entry)]

    @property
    def taken(self) -> bool:
        """Whether something is here that is no run, nor what a run leaves that was refused before it began."""
        if self.config_file.exists() or not self.path.exists():
            return False
        return not self.path.is_dir() or any(
            not entry.name.startswith(".") and entry != self.quarantine_file for entry in self.path.iterdir()
        )

    @property
    def step(self) -> int | None:
        """The step of the newest checkpoint, whole or not, or None."""
        return latest_step(self.checkpoints)

    @property
    def snapshot_steps(self) -> list[int]:
        """The steps that have a snapshot of the averages, in order."""
        return [step_of(entry) for entry in self.made("averages")]

    def snapshot_file(self, step: int) -> Path:
        """The snapshot of the averages after that step."""
        return self.averages / f"{step_name(step)}.safetensors"

    @property
    def whole_step(self) -> int | None:
        """The step of the newest checkpoint that is whole, or None without any; its files are read.

        Raises:
            InputError: every checkpoint is damaged.
        """

        def look(step: int) -> int:
            verified(self.checkpoints, step)
            return step

        return newest_whole(self.checkpoints, look)


def _is_text(name: str | Path) -> bool:
    """Whether a name is UTF-8; with other bytes, which Linux allows, safetensors opens nothing."""
    return not any("\ud800" <= c <= "\udfff" for c in str(name))
