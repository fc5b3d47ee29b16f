"""The run folder: where a training run keeps its configuration, metrics, checkpoints, pictures and recordings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab import disk, locks
from ditlab.build import build_dataset, build_network, build_process, resolve_device
from ditlab.config import Config
from ditlab.diffusion.grids import Grid
from ditlab.diffusion.guidance import Guidance
from ditlab.diffusion.process import Process
from ditlab.diffusion.solvers import Solver
from ditlab.errors import ConfigError, InputError, printable
from ditlab.machine.profile import profile
from ditlab.networks import kernels
from ditlab.recipes import unguided
from ditlab.training import metrics
from ditlab.training.checkpoint import LATEST, latest_step, newest_whole, point, step_name, step_of, verified
from ditlab.training.loading import foresee, load_average, load_weights
from ditlab.training.parallel import ALONE, Ranks

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
            InputError: the file is not a valid configuration; the field is named.
        """
        try:
            config = Config.model_validate({"averages": (), **disk.read_json(self.config_file, self.path)})
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


@dataclass(frozen=True, repr=False)
class Run:
    """A trained network with its process, ready to sample."""

    folder: RunFolder
    config: Config
    process: Process
    step: int
    num_classes: int | None
    shape: tuple[int, ...]
    weights: str | float = "ema"

    def __repr__(self) -> str:
        shape, count = "×".join(map(str, self.shape)), sum(p.numel() for p in self.process.parameters())
        return (
            f"Run({printable(str(self.folder.path))!r}, step {self.step:,}, weights {self.weights}: "
            f"{self.config.network.kind} of {count:,} parameters, samples of {shape})"
        )

    def sample(
        self,
        n: int,
        labels: int | Sequence[int] | Int[Tensor, " n"] | None = None,
        steps: int = 25,
        solver: str | Solver = "heun",
        guidance: float | Guidance | None = None,
        seed: int = 0,
        batch_size: int = 500,
        grid: str | Grid | Tensor | None = None,
        shift: float = 1.0,
        guide: Run | None = None,
        ranks: Ranks = ALONE,
        first: int = 0,
    ) -> Float[Tensor, "n ..."]:
        """Draw n samples; images are clamped to [−1, 1], points and latents are not.

        Args:
            n: how many.
            labels: one for all, or one for each; without, sample i has the label i mod num_classes.
            steps, solver, guidance, seed, grid, shift: as in ``Process.sample``.
            batch_size: how many at a time; it changes nothing but memory and speed.
            guide: a weaker run of the same data and path, in the place of the null label.
            ranks: processes that draw a share each; every one of them gets all samples.
            first: the number of the first sample, to go on where an earlier call has ended; give labels then, if any.

        Raises:
            InputError: fewer than one sample; labels out of range, not one for each, or on a run without labels; a
                guide of other data; arguments that do not go together; samples that are not finite.
        """
        if n < 1:
            raise InputError(f"n={n} must be at least 1")
        wanted = self.labels(n, labels)
        options: dict[str, Any] = {"steps": steps, "solver": solver, "guidance": guidance, "grid": grid, "shift": shift}
        if guide is not None:
            options["guide"] = self._guide(guide)
        pieces = []
        own = ranks.share(n)
        for begin in range(0, len(own), batch_size):
            some = own[begin : begin + batch_size]
            cond = None if wanted is None else {"label": wanted[torch.tensor(some).clamp(max=n - 1)]}
            try:
                pieces.append(
                    self.process.sample(len(some), self.shape, cond=cond, seed=seed, first=first + some[0], **options)
                )
            except ValueError as error:
                raise InputError(str(error)) from None
        samples = ranks.gather(torch.cat(pieces))[:n]
        if not samples.isfinite().all():  # looked at before a clamp makes 1 of infinity
            raise InputError(f"some samples are not finite numbers: was {self.folder.path} trained to its end?")
        return samples if len(self.shape) != 3 or self.latent else samples.clamp(-1, 1)

    @property
    def latent(self) -> bool:
        """Whether samples are an autoencoder's latents, and not images or points."""
        return self.config.latent_space is not None

    def show(self, height: int = 900) -> None:
        """Show in a notebook what each patch looks at, or, of a network without attention, how it denoises.

        What is shown works without Python from then on. Elsewhere than in a notebook, a line says what to do instead.

        Args:
            height: of the picture in the notebook, in pixels.

        Raises:
            InputError: the attention maps are too large for a notebook.
        """
        import_module("ditlab.lab.notebook").show(self, height)  # by name: the lab stands upon runs, not below them

    def _guide(self, guide: Run) -> Process:
        """The process of a run to guide away from."""
        if (guide.shape, guide.num_classes) != (self.shape, self.num_classes):
            raise InputError(
                f"{guide.folder.path} cannot guide {self.folder.path}: its samples are of shape {guide.shape} with "
                f"{guide.num_classes} labels, not {self.shape} with {self.num_classes}; choose a run of the same data"
            )
        return guide.process

    def labels(self, n: int, labels: int | Sequence[int] | Tensor | None = None) -> Int[Tensor, " n"] | None:
        """The n labels that ``sample`` uses, or None on a run without labels."""
        if self.num_classes is None:
            if labels is not None:
                raise InputError(f"{self.folder.path} was trained without labels; leave the label out")
            return None
        if labels is None:
            return torch.arange(n) % self.num_classes
        wanted = torch.as_tensor(labels).cpu()
        if wanted.is_floating_point() or wanted.shape not in ((), (n,)):
            raise InputError(f"labels must be a whole number, or one for each of the {n} samples")
        wanted = wanted.long().expand(n)
        if wanted.min() < 0 or wanted.max() >= self.num_classes:
            raise InputError(f"labels of {self.folder.path} run from 0 to {self.num_classes - 1}, not {labels}")
        return wanted


def _is_text(name: str | Path) -> bool:
    """Whether a name is UTF-8; with other bytes, which Linux allows, safetensors opens nothing."""
    return not any("\ud800" <= c <= "\udfff" for c in str(name))


def load(
    path: str | Path, weights: Literal["ema", "raw"] | float = "ema", step: int | None = None, device: str = "auto"
) -> Run:
    """Load a trained run.

    Args:
        path: the run's folder, or its name in ``runs/``.
        weights: "ema" for the averaged weights, "raw" for the last ones, or the relative width of one of the averages
            that ``config.averages`` tracks, such as 0.1.
        step: which checkpoint; None for the newest that is whole.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: no such run or checkpoint, or one that is damaged or does not fit its configuration.
    """
    names = {"ema": "ema", "raw": "model"}
    if isinstance(weights, str) and weights not in names:
        raise InputError(f"unknown weights {weights!r}; choose 'ema' or 'raw', or a width such as 0.1")
    folder = RunFolder.find(path)
    config = folder.read_config()
    dataset = build_dataset(config)
    network = cache(partial(build_network, config, dataset))

    def take(step: int) -> int:
        checkpoint = verified(folder.checkpoints, step)
        foresee(config, dataset, checkpoint, names.get(str(weights), "model"))
        if isinstance(weights, str):
            load_weights(network(), checkpoint, names[weights], config)
        else:
            load_average(network(), checkpoint, weights, config)
        return step

    taken = newest_whole(folder.checkpoints, take) if step is None else take(step)
    if taken is None:
        raise InputError(f"{folder.path} has no checkpoint yet; go on with: ditlab train --resume {folder.path}")
    where = resolve_device(device)
    if where.type == "cpu":
        kernels.use(profile().kernels)
    process = build_process(config, network().to(where)).eval().requires_grad_(False)
    return Run(folder, config, process, taken, dataset.num_classes, dataset.shape, weights)
