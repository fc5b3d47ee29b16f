"""The run folder: where a training run keeps its configuration, metrics, checkpoints, pictures and recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from ditlab.config import Config, SamplingConfig
from ditlab.core.device import resolve_device
from ditlab.core.distributed import ALONE, Ranks
from ditlab.core.errors import InputError, printable
from ditlab.data.conditions import Conditions, num_classes
from ditlab.data.dataset import Dataset
from ditlab.diffusion.grids import Grid
from ditlab.diffusion.guidance import Guidance
from ditlab.diffusion.process import Process
from ditlab.diffusion.solvers import Solver
from ditlab.machine.profile import profile
from ditlab.networks import kernels
from ditlab.runs.build import GivenNetwork, GivenProcess, build_dataset, build_network, build_process
from ditlab.runs.checkpoint import newest_whole, verified
from ditlab.runs.folder import RunFolder
from ditlab.runs.sampling import build_drawing, clamped, conditioned, draw
from ditlab.runs.weights import foresee, load_average, load_weights


@dataclass(frozen=True, repr=False)
class Run:
    """A trained network with its process, ready to sample."""

    folder: RunFolder
    config: Config
    process: Process
    step: int
    dataset: Dataset
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
            labels: one for all, or one for each; without, sample i has the label i mod num_classes. Other conditions
                are unknown: ``draw`` takes them.
            steps, solver, guidance, seed, grid, shift: as in ``Process.sample``.
            batch_size: how many at a time; it changes nothing but memory and speed.
            guide: a weaker run of the same data and path, in the place of the null label.
            ranks: processes that draw a share each; every one of them gets all samples.
            first: the number of the first sample, to go on where an earlier call has ended; give labels then, if any.

        Raises:
            InputError: fewer than one sample; labels out of range, not one for each, or on a run without labels; a
                guide of other data; arguments that do not go together; samples that are not finite.
        """
        options: dict[str, Any] = {"steps": steps, "solver": solver, "guidance": guidance, "grid": grid, "shift": shift}
        if guide is not None:
            options["guide"] = self.guide(guide)
        told = self.cond(n, {} if labels is None else {"label": labels}, first)
        return self.drawn(n, told, first, batch_size, ranks=ranks, seed=seed, **options)

    def draw(
        self, n: int, cond: Mapping[str, Any] | None = None, seed: int = 0, *, guide: Run | None = None, **changes: Any
    ) -> Float[Tensor, "n ..."]:
        """Draw n samples as the run's own configuration draws; images are clamped to [−1, 1].

        Args:
            n: how many.
            cond: raw values by name, as ``cond`` takes them.
            seed: sample i's noise depends on (seed, i) alone.
            guide: a weaker run of the same data and path, in the place of the null label.
            changes: fields of ``SamplingConfig``, such as ``steps=10, guidance=1, solver="euler"``; and ``ranks``,
                ``batch_size`` and ``first`` as in ``sample``.

        Raises:
            InputError, ConfigError: as ``sample``, and a field that is not there.
        """
        own = {name: changes.pop(name) for name in ("ranks", "batch_size", "first") if name in changes}
        settings = SamplingConfig(**{**dict(self.config.sampling), **changes})
        told = self.cond(n, cond, own.get("first", 0))
        options = build_drawing(settings, self.process, guided=bool(told or guide))
        if guide is not None:
            options["guide"] = self.guide(guide)
        return self.drawn(n, told, seed=seed, **own, **options)

    def drawn(
        self, n: int, told: Mapping[str, Tensor], first: int = 0, batch_size: int = 500, **options: Any
    ) -> Float[Tensor, "n ..."]:
        """Draw n samples; ``told`` is what the network sees of each, and the options are those of ``sampling.draw``."""
        samples = draw(self.process, n, self.shape, told, batch_size=batch_size, first=first, **options)
        if not samples.isfinite().all():  # asked before a clamp makes 1 of infinity
            raise InputError(f"some samples are not finite numbers: was {self.folder.path} trained to its end?")
        return clamped(samples, self.config)

    def cond(self, n: int, cond: Mapping[str, Any] | None = None, first: int = 0) -> dict[str, Tensor]:
        """What the network is told of n samples, the number of the first one being ``first``.

        Args:
            n: how many.
            cond: raw values by name, one for all samples or one for each: numbers or names of classes, scalars in their
                unit, features of text. Without a label, sample i has the label i mod num_classes; other conditions that
                are not given are unknown.
            first: the number of the first sample.

        Raises:
            InputError: a condition that the run does not have, or values that do not fit it.
        """
        if n < 1:
            raise InputError(f"n={n} must be at least 1")
        try:
            return conditioned(self.conditions, n, cond, first)
        except InputError as error:
            raise InputError(f"{self.folder.path}: {error}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return self.dataset.shape

    @property
    def conditions(self) -> Conditions:
        """What the network can be told of a sample."""
        return self.dataset.conditions

    @property
    def num_classes(self) -> int | None:
        """How many classes the label has; None without a label."""
        return num_classes(self.conditions)

    @property
    def latent(self) -> bool:
        """Whether samples are an autoencoder's latents, and not images or points."""
        return self.config.latent_space is not None

    def guide(self, guide: Run) -> Process:
        """The process of a run to guide away from."""
        if (guide.shape, guide.num_classes) != (self.shape, self.num_classes):
            raise InputError(
                f"{guide.folder.path} cannot guide {self.folder.path}: its samples are of shape {guide.shape} with "
                f"{guide.num_classes} labels, not {self.shape} with {self.num_classes}; choose a run of the same data"
            )
        return guide.process

    def labels(self, n: int, labels: int | Sequence[int] | Tensor | None = None) -> Int[Tensor, " n"] | None:
        """The n labels that ``sample`` uses, or None on a run without labels."""
        return self.cond(n, {} if labels is None else {"label": labels}).get("label")


def ready(process: Process) -> Process:
    """A process ready to draw: in evaluation mode, without gradients, with this machine's kernels."""
    if process.like().device.type == "cpu":
        kernels.use(profile().kernels)
    return process.eval().requires_grad_(False)


def load(
    path: str | Path,
    weights: Literal["ema", "raw"] | float = "ema",
    step: int | None = None,
    device: str = "auto",
    network: GivenNetwork | None = None,
    process: GivenProcess | None = None,
    dataset: Dataset | None = None,
) -> Run:
    """Load a trained run.

    Args:
        path: the run's folder, or its name in ``runs/``.
        weights: "ema" for the averaged weights, "raw" for the last ones, or the relative width of one of the averages
            that ``config.averages`` tracks, such as 0.1.
        step: which checkpoint; None for the newest that is whole.
        device: "auto", "cpu", "cuda" or "mps".
        network, process: those that were given to ``ditlab.fit`` as objects; the network takes the run's weights.
        dataset: likewise; samples are drawn without it, and compared with it.

    Raises:
        InputError: no such run or checkpoint, or one that is damaged or does not fit its configuration.
    """
    names = {"ema": "ema", "raw": "model"}
    if isinstance(weights, str) and weights not in names:
        raise InputError(f"unknown weights {weights!r}; choose 'ema' or 'raw', or a width such as 0.1")
    folder = RunFolder.find(path)
    config = folder.read_config()
    dataset = build_dataset(config) if dataset is None else dataset
    made = cache(partial(build_network, config, dataset, network))

    def take(step: int) -> int:
        checkpoint = verified(folder.checkpoints, step)
        foresee(config, dataset, checkpoint, names.get(str(weights), "model"))
        if isinstance(weights, str):
            load_weights(made(), checkpoint, names[weights], config)
        else:
            load_average(made(), checkpoint, weights, config)
        return step

    taken = newest_whole(folder.checkpoints, take) if step is None else take(step)
    if taken is None:
        raise InputError(f"{folder.path} has no checkpoint yet; go on with: ditlab train --resume {folder.path}")
    sampler = ready(build_process(config, made().to(resolve_device(device)), process))
    return Run(folder, config, sampler, taken, dataset, weights)
