"""Training as an iterator: the loop yields after each step, and whoever watches decides when to look."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.config import Config
from ditlab.core.device import HALVES, autocast, moved, resolve_device
from ditlab.core.distributed import ALONE, Ranks, full
from ditlab.core.errors import InputError, TrainingError, first_line
from ditlab.core.malloc import freed_memory_kept, use_huge_pages
from ditlab.core.rng import generator_for
from ditlab.data.dataset import Batch, Dataset
from ditlab.runs.build import GivenNetwork, GivenProcess, auxiliary_losses, build_process, initial_network
from ditlab.runs.weights import differences
from ditlab.training.compilation import compile_network, is_whole, leave_uncompiled, uncompiled
from ditlab.training.ema import EMA, PowerAverages, saved_buffers
from ditlab.training.loader import batches
from ditlab.training.optim import Optimizers
from ditlab.training.sharding import accumulating, recompute_blocks, replicate, shard
from ditlab.training.spikes import Guard

SPREAD_BATCH = 4  # samples, below which the mean of a batch varies so much that a spike has to be larger
REHEARSED = 3  # turns of compiled code and of the network as written, of which the least is taken
SETTLED = 5  # steps after which the process has all the memory that a step needs


class TrainState:
    """Everything that decides how training goes on: weights, their averages, the optimizers, the guard and the step.

    Args:
        config: with a resolved precision ("fp32", "bf16" or "fp16"); compiled only where it says so.
        dataset: gives the network its shape and labels.
        ranks: the processes that train it together, each of which has such a state.
        network, process: given as objects, in the place of those of the configuration.

    Raises:
        InputError: the batch cannot be divided among them, or the network not be run as the configuration says.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        ranks: Ranks = ALONE,
        network: GivenNetwork | None = None,
        process: GivenProcess | None = None,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.device = resolve_device(config.device)
        self.share = share_for_each(config, ranks.world)
        self.sharded = ranks.world > 1 and config.parallel == "fsdp"
        fresh = initial_network(config, dataset, network)
        self.network: nn.Module = fresh if self.sharded else fresh.to(self.device)
        self.ema = EMA(self.network, config.ema_decay, partial(shard, device=self.device) if self.sharded else None)
        self.process = build_process(config, self._spread(), process)
        self.process.auxiliary = auxiliary_losses(config, self.network)
        self.averages = PowerAverages(self.network, config.averages)
        self.averaged_process = build_process(config, self.ema.network, process)
        self.optimizers = Optimizers(self.network, config)
        factor = config.spike_factor * max(1.0, SPREAD_BATCH / config.batch_size)
        self.guard = Guard(factor, config.bad_steps, self.process.watched, scaled=config.precision == "fp16")
        self.fingerprint: str | None = None  # of data that have one, once they are ready
        self.step = 0

    def _spread(self) -> nn.Module:
        """The network as it runs in training: its blocks recomputed, compiled, and it shared among the processes."""
        if self.config.recompute:
            recompute_blocks(self.network)
        if self.config.compile is True:
            compile_network(self.network, is_whole(self.config, self.ranks.world))
        if self.sharded:
            shard(self.network, self.device)
        return self.network if self.sharded or self.ranks.world == 1 else replicate(self.network)

    def run_as_written(self) -> None:
        """Train without compiled code from now on."""
        leave_uncompiled(self.network)
        self.config = self.config.model_copy(update={"compile": False})

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that decide how training goes on, by the file of a checkpoint that they go into."""
        averages = self.averages.state_dict()
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizers.state_dict(),
            **({"averages": averages} if averages else {}),
        }

    def differences(self, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[str]]:
        """In what tensors differ from those that ``load_tensors`` can take, for each part that ``tensors`` names."""
        own = self.tensors()
        plain = {name: differences(parts[name], own[name]) for name in own if name != "optimizer"}
        return plain | {"optimizer": self.optimizers.differences(dict(parts["optimizer"]))}

    def load_tensors(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back what ``tensors`` gave."""
        self.network.load_state_dict(parts["model"])
        self.ema.network.load_state_dict(parts["ema"])
        self.optimizers.load_state_dict(dict(parts["optimizer"]))
        self.averages.load_state_dict(parts.get("averages", {}))

    def like(self, part: str, key: str) -> Tensor | None:
        """The tensor that one of a part is shaped and shared like; None if every process has all of it."""
        if part == "optimizer":
            return self.optimizers.like(key)
        if part == "averages":
            return self.averages.state_dict()[key]
        return {"model": self.network, "ema": self.ema.network}[part].state_dict()[key]

    def facts(self) -> dict[str, Any]:
        """What decides how training goes on beside the tensors: plain numbers and text."""
        return {"step": self.step, "fingerprint": self.fingerprint, "guard": self.guard.facts()}

    def take_facts(self, facts: dict[str, Any]) -> None:
        """Take back what ``facts`` gave; runs of before the guard have none of its numbers.

        Raises:
            InputError: the data are not those that were trained on, or it is no state of a training; nothing was
                changed.
        """
        if "run" in facts:
            raise InputError(f"these weights are an average made from {facts['run']}; resume {facts['run']} instead")
        then = facts.get("fingerprint")
        if then != self.fingerprint:
            raise InputError(
                f"the data are not those that this run was trained on (their fingerprint was {then} and is "
                f"{self.fingerprint}): bring those back, or train a new run"
            )
        if "guard" in facts:
            self.guard.take_facts(facts["guard"])
        self.step = int(facts["step"])


class Step(NamedTuple):
    """What one step leaves behind; ``loss`` and ``grad_norm`` are scalars on the device.

    ``skipped`` says why the step was not learned from: the weights, their average and the optimizers are as before it.
    """

    step: int  # steps done, from 1
    loss: Tensor
    grad_norm: Tensor
    lr: float
    skipped: str | None = None


def train(state: TrainState, dataset: Dataset, folder: Path | None = None) -> Generator[Step, None, None]:
    """Take optimizer steps until ``config.steps``; yield after each, with ``state`` up to date.

    The randomness of a step is a function of (seed, step), and its data of (seed, samples seen): a run that goes on
    from a saved state draws what the uninterrupted one would have drawn. Close the iterator if it is left early:
    there may be worker processes to end, and memory to give back.

    Args:
        state: where to begin.
        dataset: what to learn from.
        folder: where a worker process that hangs leaves its stacks.

    Raises:
        TrainingError: ``config.bad_steps`` steps in a row could not be learned from, or the workers failed.
    """
    config, device, begun = state.config, state.device, state.step
    foreach = device.type != "mps"  # there torch has none for the norm, and refuses
    state.process.train()
    with freed_memory_kept(device.type), closing(batches(dataset, config, begun, folder, state.ranks)) as prepared:
        buffers = saved_buffers(state.network)
        for batch in prepared:
            before = [buffer.clone() for buffer in buffers]
            loss, watched = _backward(state, batch)
            grad_norm = full(nn.utils.clip_grad_norm_(state.optimizers.parameters, config.grad_clip, foreach=foreach))
            if state.ranks.world > 1:
                loss, watched, grad_norm = _agreed(state.ranks, loss, watched, grad_norm)
            figures = watched.item(), grad_norm.item()  # waits for the device
            skipped = state.guard.objection(*figures)
            state.guard.note(figures[0], skipped)
            lr = state.optimizers.lr(state.step)
            state.step += 1
            if skipped is None:
                state.optimizers.step(state.step - 1)
                state.ema.update(state.step)
                state.averages.update(state.step)
            else:
                _put_back(buffers, before)
            if state.step == begun + SETTLED and device.type == "cpu":
                use_huge_pages()
            yield Step(state.step, loss, grad_norm, lr, skipped)
            if state.guard.gives_up:
                raise TrainingError(hopeless(state, skipped))


def rehearse(state: TrainState, dataset: Dataset) -> str | None:
    """Compute the gradients of the next step, alone, and forget them; what goes wrong in a line, or None.

    Code that is to be compiled is made here.
    """
    try:
        with _rehearsed(state, dataset) as gradients:
            gradients()
    except Exception as error:  # of a compiler, or of what would fail without one as well
        return first_line(error)
    return None


def compiled_over_written(state: TrainState, dataset: Dataset) -> float:
    """Time of the next step's gradients by compiled code, over that by the network as written: the least of turns."""
    ways: list[Callable[[], AbstractContextManager[None]]] = [nullcontext, partial(uncompiled, state.network)]
    quickest = [math.inf, math.inf]
    with _rehearsed(state, dataset) as gradients:
        for turn in range(1 + REHEARSED):
            for i, way in enumerate(ways):
                with way():
                    begun = time.perf_counter()
                    gradients()
                    took = time.perf_counter() - begun
                if turn:  # the first one makes what is kept
                    quickest[i] = min(quickest[i], took)
    return quickest[0] / quickest[1]


@contextmanager
def _rehearsed(state: TrainState, dataset: Dataset) -> Iterator[Callable[[], object]]:
    """What computes the gradients of the next step; with the block all that it did is undone."""
    config, buffers = state.config, saved_buffers(state.network)
    before = [buffer.clone() for buffer in buffers]
    state.process.train()
    try:
        yield lambda: _backward(state, dataset.batch(config.seed, state.step * config.batch_size, config.batch_size))
    finally:
        state.optimizers.zero_grad()
        _put_back(buffers, before)


@torch.no_grad()
def _put_back(buffers: list[Tensor], before: list[Tensor]) -> None:
    """Undo what forward passes did to running statistics."""
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)


def _agreed(ranks: Ranks, loss: Tensor, watched: Tensor, grad_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The means over the processes and the norm of the gradient: the same numbers everywhere, for one decision."""
    *means, norms = zip(*ranks.told([loss.item(), watched.item(), grad_norm.item()]), strict=True)
    loss, watched = (torch.tensor(sum(values) / ranks.world, dtype=loss.dtype) for values in means)
    worst = next((norm for norm in norms if not math.isfinite(norm)), norms[0])
    return loss, watched, torch.tensor(worst, dtype=grad_norm.dtype)


def _backward(state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss of a batch, part by part.

    Gives the loss of this process's share of it and, where a weight hides spikes in that, the unweighted error for the
    guard (otherwise the loss again); both detached.
    """
    generator, count, scale = draws(state, state.step), state.config.accumulate, state.guard.scale
    state.optimizers.zero_grad()
    losses: list[Tensor] = []
    watched: list[Tensor] = []
    for x0, cond in parts(state, batch):
        with accumulating(state.process.network, last=len(losses) == count - 1):
            with autocast(state.config.precision, x0.device):
                loss = state.process.loss(x0, cond, generator=generator)
            (loss if count == scale else loss / (count / scale)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        errors = state.process.unweighted
        watched.append(losses[-1] if errors is None else errors.mean())
    if scale != 1:
        state.optimizers.divide_gradients(scale)
    return _mean(losses), _mean(watched)


def _mean(figures: list[Tensor]) -> Tensor:
    return figures[0] if len(figures) == 1 else torch.stack(figures).mean()


def draws(state: TrainState, step: int) -> torch.Generator:
    """The generator of the step that follows after ``step``; it goes on from part to part of the batch."""
    return generator_for(state.config.seed, "train", step, state.ranks.rank, device=state.device)


def parts(state: TrainState, batch: Batch) -> Iterator[Batch]:
    """The ``config.accumulate`` parts that a process's share of a batch is run in, on the device."""
    size = state.share // state.config.accumulate
    for first in range(0, state.share, size):
        cut = slice(first, first + size)
        cond = {name: moved(value[cut], state.device) for name, value in batch.cond.items()}
        yield Batch(moved(batch.x0[cut], state.device), cond)


def share_for_each(config: Config, world: int) -> int:
    """How many samples of a batch each of so many processes takes.

    Raises:
        InputError: not all as many.
    """
    pieces = world * config.accumulate
    if config.batch_size % pieces:
        among = f"{world} processes" + (f" of {config.accumulate} parts each" if config.accumulate > 1 else "")
        raise InputError(
            f"--batch-size {config.batch_size} cannot be divided among {among}: use a multiple of {pieces}"
        )
    return config.batch_size // world


def hopeless(state: TrainState, last: str | None) -> str:
    """The message that ends a training of which too many steps in a row could not be learned from."""
    count = state.guard.in_a_row
    steps = f"step {state.step}" if count == 1 else f"{count} steps in a row up to step {state.step}"
    return f"{steps} could not be learned from ({last}): {advice(state.config)}"


def advice(config: Config) -> str:
    """What to try when training runs away."""
    precision = " or --precision fp32" if config.precision in HALVES else ""
    return f"in a new run, try --lr {config.lr / 10:g}{precision}, or look for broken samples in the data"
