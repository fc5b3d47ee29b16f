"""Does a network use its labels, and do the labels describe the samples?"""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ditlab.core.rng import generator_for
from ditlab.data.conditions import num_classes
from ditlab.data.dataset import Dataset
from ditlab.doctor.checks import Check, unknown
from ditlab.doctor.evidence import Weights
from ditlab.doctor.metrics import EARLY
from ditlab.doctor.trials import Trials, squared_errors

USED = 0.03  # relative rise of the loss with other labels
LEARNED = 0.97  # loss over that of the linear fit
SURE = 4.0  # standard errors
FOLDS, LARGEST_SIDE, FEWEST = 5, 16, 100  # of the cross-validation; pixels of its pictures; samples


class Effect(NamedTuple):
    """How much larger the loss is with another label at the same time and noise."""

    rise: float
    standard_error: float
    share: float  # of the loss with the sample's own label

    @property
    def seen(self) -> bool:
        """Whether the effect is large and significant."""
        return self.share > USED and self.rise > SURE * self.standard_error


def label_effect(weights: Weights, drawn: Trials, errors: Tensor, classes: int) -> Effect:
    """Replace labels by uniformly drawn others; ``errors`` are the losses with the samples' own labels."""
    label = drawn.cond["label"]
    away = torch.randint(1, classes, label.shape, generator=generator_for("doctor", "labels"))
    rise = squared_errors(weights.averaged, drawn.labelled((label + away) % classes)) - errors
    mean = float(rise.mean())
    return Effect(mean, float(rise.std()) / math.sqrt(len(rise)), mean / float(errors.mean()))


class Told(NamedTuple):
    """Cross-validated accuracy of a linear classifier, accuracy of guessing, and number of samples."""

    accuracy: float
    chance: float
    n: int

    @property
    def more_than_chance(self) -> bool:
        """Whether samples tell something of their labels."""
        return self.accuracy - self.chance > SURE * math.sqrt(self.chance * (1 - self.chance) / self.n)


def told_by_samples(x0: Tensor, label: Tensor) -> Told | None:
    """Can a linear classifier tell labels from samples? None if there are too few samples of each label."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import cross_val_score

    counts = torch.bincount(label)
    kept = counts[label] >= FOLDS
    if int(kept.sum()) < FEWEST or int((counts >= FOLDS).sum()) < 2:
        return None
    small = (min(x0.shape[-2], LARGEST_SIDE), min(x0.shape[-1], LARGEST_SIDE))
    seen = (adaptive_avg_pool2d(x0, small) if x0.dim() == 4 else x0)[kept].flatten(1).numpy()
    names = label[kept].numpy()
    accuracy = cross_val_score(RidgeClassifier(alpha=10.0), seen, names, cv=FOLDS).mean()
    return Told(float(accuracy), float(np.bincount(names).max() / len(names)), len(names))


def labels(dataset: Dataset, weights: Weights, drawn: Trials, errors: Tensor, linear: float) -> Check:
    """Do labels help the network, and can they be told from the samples?

    Args:
        dataset: the data, with labels or without.
        weights: the weights of the run.
        drawn: training samples.
        errors: errors of the averaged network on these.
        linear: mean error of the linear fit on these; a network that has learned anything is clearly below.
    """
    name = "labels"
    if (classes := num_classes(dataset.conditions)) is None or "label" not in drawn.cond:
        return unknown(name, "these data have none")
    if classes < 2:
        return unknown(name, "there is only one")
    effect = label_effect(weights, drawn, errors, classes)
    once = len(drawn.x0) if not isinstance(dataset, Sized) else min(len(dataset), len(drawn.x0))  # none twice
    told = told_by_samples(drawn.x0[:once], drawn.cond["label"][:once])
    value = {"effect": effect._asdict(), "classifier": None if told is None else told._asdict()}
    figure = f"the loss is {effect.share:+.1%} with others (± {effect.standard_error / float(errors.mean()):.1%})"
    if told is not None:
        figure += f"; a linear classifier is right in {told.accuracy:.0%}, a guess in {told.chance:.0%}"
    found = Check(name, "ok", figure, value, f"the loss is at least {USED:.0%} higher with other labels")
    early = weights.step < EARLY
    if told is not None and not told.more_than_chance:
        if effect.seen:
            reason = "the network uses labels that cannot be told from the samples: it may have memorised them"
            return found.marked("warning", reason, "look at samples of each label")
        reason = "labels cannot be told from the samples, and the network ignores them: they look shuffled"
        advice = "look at samples of each label; correct the labels, or train without them"
        return found.marked("warning" if early else "bad", reason, advice)
    if effect.seen:
        return found
    if early or not float(errors.mean()) < LEARNED * linear:
        return unknown(name, f"{figure}; too early: the network has learned too little")
    reason = "the network does not use these labels: it was trained with other or shuffled ones, or without"
    advice = "check that each sample has its own label in training, and that process.condition_dropout is below 1"
    return found.marked("bad" if told is not None else "warning", reason, advice)
