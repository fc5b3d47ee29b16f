"""The run folder: where a training run keeps its configuration, metrics, checkpoints, pictures and recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditlab.config import Config
from ditlab.core.device import resolve_device
from ditlab.core.distributed import ALONE, Ranks
from ditlab.core.errors import InputError, printable
from ditlab.diffusion.grids import Grid
from ditlab.diffusion.guidance import Guidance
from ditlab.diffusion.process import Process
from ditlab.diffusion.solvers import Solver
from ditlab.machine.profile import profile
from ditlab.networks import kernels
from ditlab.runs.build import build_dataset, build_network, build_process
from ditlab.runs.checkpoint import newest_whole, verified
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import foresee, load_average, load_weights


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
