"""What a network is shown: a training example, a generated image or one that somebody brought, at a time t."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ditlab.config import ImagesData, LatentsData
from ditlab.core.errors import InputError, Missing
from ditlab.core.rng import SampleNoise
from ditlab.data.dataset import External
from ditlab.data.latents.index import has_index
from ditlab.diffusion.process import Process
from ditlab.inspection.interventions import intervened
from ditlab.lab.lens.uploads import OwnImages
from ditlab.networks.costs import multiply_accumulates
from ditlab.runs.run import Run
from ditlab.runs.sampling import build_drawing, clamped, conditioned

Cond = Mapping[str, float] | None  # scalars by name, in their unit
Told = dict[str, Tensor]  # as networks see it
KEPT = 32  # trajectories
ADAPTIVE = 400  # evaluations to be ready for, where a solver cannot say how many it will need
QUICK = {"cpu": 4e11, "cuda": 3e13, "mps": 3e12}  # multiply-accumulates of a generated input: some seconds
MAX_WORK = {"cpu": 1.2e13, "cuda": 1e15, "mps": 1e14}  # multiply-accumulates of one answer: minutes


def check_work(multiply_accumulates: float, device: torch.device, instead: str) -> None:
    """Refuse, before anything is computed, what would take minutes; say what to do instead.

    Raises:
        InputError: more than 1.2·10¹³ multiply-accumulates on a CPU (10¹⁴ on Apple's GPUs, 10¹⁵ on CUDA).
    """
    limit = MAX_WORK[device.type]
    if multiply_accumulates > limit:
        raise InputError(
            f"this would cost {multiply_accumulates / 1e12:.0f}·10¹² multiply-accumulates, and {limit / 1e12:.0f}·10¹² "
            f"are the limit: {instead}"
        )


def affordable(most: int, multiply_accumulates: float, device: torch.device, share: float = 0.25) -> int:
    """How many images to measure on, each costing as much: at least one, and a share of the limit in all."""
    return max(1, min(most, int(share * MAX_WORK[device.type] / multiply_accumulates)))


def evaluations_of(process: Process, solver: str, steps: int) -> int:
    """How often a trajectory is expected to run the network.

    Raises:
        InputError: the process cannot be sampled so.
    """
    try:
        process.sampling_times(steps)
        return process.stepper(solver).evaluations(steps) or ADAPTIVE
    except ValueError as error:
        raise InputError(str(error)) from None


def walked(process: Process, walk: Iterator[tuple[float, Tensor]], edits: str) -> Iterator[tuple[float, Tensor, int]]:
    """(t, x, how often the network ran for it, counting each sample), with the network changed as ``edits`` say.

    Only while a state is computed: between two states the network is itself, and may answer other questions.
    """
    while True:
        before = process.evaluations
        with intervened(process.network, edits):
            state = next(walk, None)
        if state is None:
            return
        yield (*state, process.evaluations - before)


class Where(TypedDict, total=False):
    """What a scene is asked for by; see ``Lens``."""

    input: str
    t: float
    label: int | None
    cond: Cond


class Scene(NamedTuple):
    """An image at a time, or several at one time: what the network is shown."""

    x0: Tensor  # (B, C, H, W)
    noise: Tensor
    x: Tensor  # x_t
    t: float
    cond: dict[str, Tensor] | None
    drawn: str = ""  # of a generated image, how it was drawn, if not as the run's configuration says


def joined(scenes: Sequence[Scene]) -> Scene:
    """One scene of several images at the same time."""
    first = scenes[0]
    x0, noise, x = (torch.cat([getattr(scene, name) for scene in scenes]) for name in ("x0", "noise", "x"))
    conds = [scene.cond for scene in scenes if scene.cond is not None]
    cond = {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]} if conds else None
    return Scene(x0, noise, x, first.t, cond)


class Scenes:
    """Finds images by name and brings them to a time; see ``Lens`` for the names."""

    def __init__(self, run: Run, own: OwnImages) -> None:
        self.run, self.own = run, own
        self._generated: OrderedDict[tuple[Any, ...], tuple[list[tuple[float, Tensor]], str]] = OrderedDict()

    @property
    def has_examples(self) -> bool:
        """Whether what the run was trained on can be had here; images may have been moved."""
        data = self.run.config.data
        if isinstance(data, LatentsData):
            return has_index(data.path)
        if isinstance(data, ImagesData):
            return not Path(data.path).is_absolute() or Path(data.path).exists()
        return not isinstance(self.run.dataset, External)

    @cached_property
    def like(self) -> Tensor:
        """An empty tensor where the network is, of its type."""
        weight = next(self.run.process.parameters())
        return torch.empty(0, device=weight.device, dtype=weight.dtype)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass on one sample."""
        return multiply_accumulates(self.run.process.network, self.run.shape)

    def scene(self, input: str = "data:0", t: float = 0.3, label: int | None = None, cond: Cond = None) -> Scene:
        """The image of that name at time t.

        Raises:
            InputError: there is no such image, time, label or scalar.
        """
        if len(self.run.shape) != 3:
            raise InputError(f"{self.run.folder.path} was trained on points; it has no images")
        if not 0 <= t <= 1:
            raise InputError(f"t={t} must be between 0 (data) and 1 (noise)")
        kind, _, value = input.partition(":")
        if kind == "own":
            x0, known, index = self._own_image(input), dict[str, Tensor](), 0
        elif kind in ("data", "sample") and value.isdecimal() and len(value) < 10:
            index = int(value)
            if kind == "sample":
                return self._sample(index, t, label, cond)
            x0, known = self._example(index)
        else:
            raise InputError(f"unknown input {input!r}; use data:I, sample:SEED or the name of a drawn image")
        x0 = x0.to(self.like)
        noise = SampleNoise(0, [index], self.run.shape, x0)()
        return self._mixed(x0, noise, t)._replace(cond=self.condition(None, label, 1, cond, known))

    def _mixed(self, x0: Tensor, noise: Tensor, t: float) -> Scene:
        """An image and a noise, brought to a time."""
        time = min(t, self.run.process.start)
        x = self.run.process.q_sample(x0, torch.tensor([time], dtype=x0.dtype, device=x0.device), noise)
        return Scene(x0, noise, x, time, None)

    def _example(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The index-th example that training saw, and its conditions."""
        config = self.run.config
        position = index - index % config.batch_size
        batch = self.run.dataset.batch(config.seed, position, config.batch_size)
        own = index % config.batch_size
        return batch.x0[own : own + 1], {name: value[own : own + 1] for name, value in batch.cond.items()}

    def _own_image(self, name: str) -> Tensor:
        image = self.own.get(name)
        if image is None or image.shape != self.run.shape:
            raise Missing(f"no image {name!r} is kept for this run; draw or upload it again")
        return torch.from_numpy(image).float()[None] / 127.5 - 1

    def _sample(self, seed: int, t: float, label: int | None, asked: Cond) -> Scene:
        cond = self.condition(seed, label, 1, asked)
        key = (seed, *((name, value.item()) for name, value in (cond or {}).items()))
        if key not in self._generated:
            self._generated[key] = self._walk(seed, cond)
            while len(self._generated) > KEPT:
                self._generated.popitem(last=False)
        states, how = self._generated[key]
        noise, x0 = states[0][1], states[-1][1]
        if how:
            return self._mixed(x0, noise, t)._replace(cond=cond, drawn=how)
        time, x = min(states, key=lambda state: abs(state[0] - t))
        return Scene(x0, noise, x, time, cond)

    def check_samples(self, n: int, label: int | None, cond: Cond) -> None:
        """Refuse n samples that would take minutes.

        Raises:
            InputError: they would, or there is no such label or scalar.
        """
        own = self.run.config.sampling
        guided = self.condition(0, label, 1, cond) is not None and own.guidance != 1
        work = n * evaluations_of(self.run.process, own.solver, own.steps) * (2 if guided else 1) * self.macs
        check_work(work, self.like.device, "ask for fewer samples")

    def samples(self, n: int, seed: int, label: int | None, cond: Cond, edits: str, look: Callable[[], None]) -> Tensor:
        """n samples as the run's own configuration draws them; without a label, sample i has i mod classes.

        The noise of sample i depends on (seed, i) and on the shape alone. Images are clamped to [−1, 1]. How much work
        that may be, ``check_samples`` says.
        """
        told = self.run.cond(n, cond)  # the labels, unless another is asked for
        told |= {} if label is None else self.condition(0, label, n) or {}
        told = {name: value.to(self.like.device) for name, value in told.items()}
        own, process, x = self.run.config.sampling, self.run.process, self.like
        drawing = build_drawing(own, process, guided=bool(told))
        walk = process.trajectory(n, self.run.shape, cond=told or None, seed=seed, **drawing)
        for _, state, _ in walked(process, walk, edits):
            look()
            x = state
        return clamped(x, self.run.config)

    @property
    def drawn(self) -> str:
        """How ``samples`` are drawn, in words."""
        own = self.run.config.sampling
        guidance = f", guidance {own.guidance:g}" if self.run.conditions and own.guidance != 1 else ""
        return f"{own.solver}, {own.steps} {'step' if own.steps == 1 else 'steps'}{guidance}"

    @property
    def work_of_sample(self) -> float:
        """Multiply-accumulates that it takes to draw one image in ``_walk``, at most."""
        own = self.run.config.sampling
        passes = 2 if self.run.conditions and own.guidance != 1 else 1
        whole = evaluations_of(self.run.process, own.solver, own.steps)
        return min(whole * passes * self.macs, max(QUICK[self.like.device.type], passes * self.macs))

    def _walk(self, seed: int, cond: dict[str, Tensor] | None) -> tuple[list[tuple[float, Tensor]], str]:
        """A trajectory as the run's configuration draws it; where that takes long, one of few steps, and how many."""
        process, own = self.run.process, self.run.config.sampling
        guided = cond is not None and own.guidance != 1
        passes = 2 if guided else 1
        affordable = QUICK[self.like.device.type] / self.macs / passes
        how = ""
        if evaluations_of(process, own.solver, own.steps) > affordable:
            solver = own.solver if own.solver in self.run.config.process.solvers else "euler"
            few = own.model_copy(update={"steps": max(1, min(own.steps, int(affordable))), "solver": solver})
            how = f"{few.steps} of {solver} in place of {own.steps} of {own.solver}"
            own = few
            check_work(own.steps * passes * self.macs, self.like.device, "choose a training example or draw an image")
        drawing = build_drawing(own, process, guided)
        return list(process.trajectory(1, self.run.shape, cond=cond, seed=seed, **drawing)), how

    def label(self, default: int | None, label: int | None) -> int | None:
        """The label asked for, −1 being the null label; by default that of the image, which may have none."""
        classes = self.run.num_classes
        if classes is None:
            if label is not None:
                raise InputError(f"{self.run.folder.path} was trained without labels; leave the label out")
            return None
        has_null = getattr(self.run.process.network, "null_label", True)
        if label is None:
            return (classes if has_null else 0) if default is None else default % classes
        if label == -1 and not has_null:
            raise InputError(f"{self.run.folder.path} has no null label; choose one from 0 to {classes - 1}")
        if not -1 <= label < classes:
            raise InputError(f"labels of {self.run.folder.path} run from 0 to {classes - 1} (-1 for none), not {label}")
        return classes if label == -1 else label

    def condition(
        self,
        default: int | None,
        label: int | None,
        n: int,
        cond: Cond = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Told | None:
        """What the network is told of n samples, as ``Process`` takes it; None where there is nothing to tell.

        Args:
            default: stands for the label of generated samples; None for the null label.
            label, cond: the label and the scalars, in their unit, that are asked for.
            n: how many.
            known: what is known of an example, as the data set gives it.

        Raises:
            InputError: there is no such label or scalar.
        """
        known = dict(known or {})
        own = int(known.pop("label")) if "label" in known else default
        wanted = self.label(own, label)
        others = {name: kind for name, kind in self.run.conditions.items() if name != "label"}
        told = known | conditioned(others, n, cond)
        told |= {} if wanted is None else {"label": torch.full((n,), wanted)}
        return {name: value.to(self.like.device) for name, value in told.items()} or None
