"""Training as an iterator: the loop yields after each step, and whoever watches decides when to look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.build import build_network, build_process, resolve_device
from ditlab.chance import generator_for, seed_from
from ditlab.config import Config
from ditlab.data.datasets import Dataset
from ditlab.errors import InputError
from ditlab.training.ema import EMA
from ditlab.training.memory import use_huge_pages
from ditlab.training.optim import Optimizers

SETTLED = 5  # steps after which the process has all the memory that a step needs


class TrainState:
    """Everything that decides how training goes on: weights, their average, the optimizers and the step.

    Args:
        config: with a resolved precision ("fp32" or "bf16").
        dataset: gives the network its shape and labels.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(config.seed, "weights"))
            self.network: nn.Module = build_network(config, dataset).to(self.device)
        self.process = build_process(config, torch.compile(self.network) if config.compile else self.network)
        self.ema = EMA(self.network, config.ema_decay)
        self.averaged_process = build_process(config, self.ema.network)
        self.optimizers = Optimizers(self.network, config)
        self.fingerprint: str | None = getattr(dataset, "fingerprint", None)
        self.step = 0

    def facts(self) -> dict[str, Any]:
        """What decides how training goes on beside the tensors: plain numbers and text."""
        return {"step": self.step, "fingerprint": self.fingerprint}

    def take_facts(self, facts: dict[str, Any]) -> None:
        """Take back what ``facts`` gave.

        Raises:
            InputError: the data are not those that were trained on; nothing was changed.
        """
        then = facts.get("fingerprint")
        if then != self.fingerprint:
            raise InputError(
                f"the data are not those that this run was trained on (their fingerprint was {then} and is "
                f"{self.fingerprint}): bring those back, or train a new run"
            )
        self.step = int(facts["step"])


class Step(NamedTuple):
    """What one step leaves behind. ``loss`` and ``grad_norm`` are still on the device: reading them waits for it."""

    step: int  # steps done, from 1
    loss: Tensor
    grad_norm: Tensor
    lr: float


def train(state: TrainState, dataset: Dataset) -> Iterator[Step]:
    """Take optimizer steps until ``config.steps``; yield after each, with ``state`` up to date.

    The randomness of a step is a function of (seed, step), and its data of (seed, samples seen): a run that goes on
    from a saved state draws what the uninterrupted one would have drawn.
    """
    config, device, begun = state.config, state.device, state.step
    state.process.train()
    while state.step < config.steps:
        x0, cond = dataset.batch(config.seed, state.step * config.batch_size, config.batch_size)
        x0, cond = x0.to(device), {name: value.to(device) for name, value in cond.items()}
        generator = generator_for(config.seed, "train", state.step, 0, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = state.process.loss(x0, cond, generator=generator)
        state.optimizers.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(state.optimizers.parameters, config.grad_clip, foreach=True)
        lr = state.optimizers.step(state.step)
        state.step += 1
        state.ema.update(state.step)
        if state.step == begun + SETTLED and device.type == "cpu":
            use_huge_pages()
        yield Step(state.step, loss.detach(), grad_norm, lr)
