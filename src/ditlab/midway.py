"""Figures of a network that is in training, of its averaged weights: those that ``ditlab eval`` gives afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditlab.build import build_drawing
from ditlab.data.datasets import Dataset
from ditlab.errors import InputError
from ditlab.evaluator import Evaluator
from ditlab.training.loop import TrainState

SEED = 0  # as of ditlab eval, unless it is told otherwise


class Midway:
    """Measures ``config.eval_n`` samples as often as it is asked to. What training draws does not depend on it.

    Of several processes all draw, and the first one measures.

    Args:
        state: of the training.
        dataset: that it learns from, ready.
        notice, beat: are told what takes long, and that it goes on.
    """

    def __init__(
        self, state: TrainState, dataset: Dataset, notice: Callable[[str], None], beat: Callable[[], None]
    ) -> None:
        self.state, self.shape, self.notice = state, dataset.shape, notice
        config, classes = state.config, dataset.num_classes
        self.labels = None if classes is None else torch.arange(config.eval_n) % classes
        self.drawing = build_drawing(config.sampling, state.averaged_process, guided=classes is not None)
        self.evaluator = Evaluator(
            config,
            dataset,
            n=config.eval_n,
            seed=SEED,
            device=state.device,
            ranks=state.ranks,
            notice=notice,
            beat=beat,
        )

    def figures(self) -> dict[str, Any]:
        """What is measured now, numbers and intervals, and the digest of the features; nothing where that failed."""
        try:
            found = self.evaluator.measure(self._draw, self.labels).figures
        except InputError as error:
            self.notice(f"step {self.state.step} could not be measured: {error}")
            return {}
        told = {name: value for name, value in found.items() if isinstance(value, float) or name.endswith("_interval")}
        return told | ({"features_digest": found["features_digest"]} if found else {})

    def _draw(self, numbers: range) -> Tensor:
        cond = None
        if self.labels is not None:
            cond = {"label": self.labels[torch.tensor(numbers).clamp(max=len(self.labels) - 1)]}
        process = self.state.averaged_process
        samples = process.sample(len(numbers), self.shape, cond=cond, seed=SEED, first=numbers.start, **self.drawing)
        return samples if len(self.shape) != 3 or self.state.config.latent_space else samples.clamp(-1, 1)
