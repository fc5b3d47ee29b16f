"""Figures of a network that is in training, of its averaged weights: those that ``ditlab eval`` gives afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditlab.config import Config
from ditlab.core.distributed import Ranks
from ditlab.core.errors import InputError
from ditlab.data.dataset import Dataset
from ditlab.diffusion.process import Process
from ditlab.evaluation.evaluator import Evaluator
from ditlab.evaluation.reference import asked_for
from ditlab.runs.sampling import build_drawing, clamped, draw

SEED = 0  # as of ditlab eval, unless it is told otherwise


class InTraining:
    """Measures ``config.eval_n`` samples as often as it is asked to. What training draws does not depend on it.

    Of several processes all draw, and the first one measures.

    Args:
        config: of the training.
        process: of the averaged weights.
        dataset: that it learns from, ready.
        device: where the weights are.
        ranks: the processes that train together.
        notice, beat: are told what takes long, and that it goes on.
    """

    def __init__(
        self,
        config: Config,
        process: Process,
        dataset: Dataset,
        device: torch.device,
        ranks: Ranks,
        notice: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self.config, self.process, self.shape, self.notice = config, process, dataset.shape, notice
        self.cond = asked_for(dataset, config.eval_n, SEED)
        self.drawing = build_drawing(config.sampling, process, guided=bool(self.cond))
        self.evaluator = Evaluator(
            config, dataset, n=config.eval_n, seed=SEED, device=device, ranks=ranks, notice=notice, beat=beat
        )

    def figures(self, step: int) -> dict[str, Any]:
        """What is measured now, numbers and intervals, and the digest of the features; nothing where that failed."""
        try:
            found = self.evaluator.measure(self._draw, self.cond.get("label")).figures
        except InputError as error:
            self.notice(f"step {step} could not be measured: {error}")
            return {}
        told = {name: value for name, value in found.items() if isinstance(value, float) or name.endswith("_interval")}
        return told | ({"features_digest": found["features_digest"]} if found else {})

    def _draw(self, numbers: range) -> Tensor:
        chosen = torch.tensor(numbers).clamp(max=self.config.eval_n - 1)
        cond = {name: value[chosen] for name, value in self.cond.items()}
        samples = draw(self.process, len(numbers), self.shape, cond, seed=SEED, first=numbers.start, **self.drawing)
        return clamped(samples, self.config)
