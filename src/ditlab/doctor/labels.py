"""Does a network use its labels, and are they worth it?"""

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
from ditlab.doctor.losses import Trials, squared_errors
from ditlab.doctor.metrics import EARLY

USED = 0.03  # rise of the loss with other labels over the loss
LEARNED = 0.97  # loss over that of the best line
SURE = 4.0  # standard errors
FOLDS, LARGEST_SIDE, FEWEST = 5, 16, 100  # of the cross-validation; pixels of its pictures; samples


class Effect(NamedTuple):
    """How much larger the loss is with another label at the same time and noise."""

    rise: float
    standard_error: float
    share: float  # of the loss with the own label

    @property
    def seen(self) -> bool:
        """Whether there is one to speak of."""
        return self.share > USED and self.rise > SURE * self.standard_error


def label_effect(weights: Weights, drawn: Trials, errors: Tensor, classes: int) -> Effect:
    """Measure it on the trials whose losses with their own labels are ``errors``; every other label is as likely."""
    label = drawn.cond["label"]
    away = torch.randint(1, classes, label.shape, generator=generator_for("doctor", "labels"))
    rise = squared_errors(weights.averaged, drawn.labelled((label + away) % classes)) - errors
    mean = float(rise.mean())
    return Effect(mean, float(rise.std()) / math.sqrt(len(rise)), mean / float(errors.mean()))


class Told(NamedTuple):
    """How often a linear classifier, tried on samples it was not fitted to, is right, and how often a guess is."""

    accuracy: float
    chance: float
    n: int

    @property
    def more_than_chance(self) -> bool:
        """Whether samples tell something of their labels."""
        return self.accuracy - self.chance > SURE * math.sqrt(self.chance * (1 - self.chance) / self.n)


def told_by_samples(x0: Tensor, label: Tensor) -> Told | None:
    """Whether labels can be told from samples at all; None where there are too few of each label."""
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


def labels(dataset: Dataset, weights: Weights, drawn: Trials, errors: Tensor, line: float) -> Check:
    """Do labels help the network, and do samples tell them?

    Args:
        dataset: with labels or without.
        weights: of the run.
        drawn: training samples.
        errors: the averaged network's at these.
        line: the mean error of the best line at these, which a network that has learned anything is well below.
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
    learned = weights.step >= EARLY and float(errors.mean()) < LEARNED * line
    expected = f"the loss is at least {USED:.0%} higher with other labels"
    if effect.seen and (told is None or told.more_than_chance):
        return Check(name, "ok", figure, value, expected)
    if told is not None and not told.more_than_chance:
        if effect.seen:
            reason = "samples do not tell their labels, and the network uses them: it may know them by heart"
            return Check(name, "warning", figure, value, expected, reason, "look at samples of each label")
        reason = "samples do not tell their labels, and the network has no use for them: they look shuffled"
        advice = "look at samples of each label; mend the labels, or train without"
        return Check(name, "bad" if weights.step >= EARLY else "warning", figure, value, expected, reason, advice)
    if not learned:
        return unknown(name, f"{figure}; it is too early: the network has learned too little")
    reason = "the network does not go by these labels: it was trained with others, with shuffled ones or without"
    advice = "see that each sample has its own label in training, and that process.condition_dropout is below 1"
    return Check(name, "bad" if told is not None else "warning", figure, value, expected, reason, advice)
