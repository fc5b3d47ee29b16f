"""Checks of the loss itself: against the recipe's, against what needs no training, and on samples never seen."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from torch import Tensor

from ditlab.config import Config
from ditlab.data.dataset import HeldOut
from ditlab.data.digits import Digits
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.doctor.advice import recipe_of, smaller_lr
from ditlab.doctor.checks import Check, Mark, unknown
from ditlab.doctor.evidence import Subject, Weights
from ditlab.doctor.losses import BINS, Bounds, Trials, by_bin, held_out_trials, squared_errors
from ditlab.doctor.metrics import EARLY
from ditlab.doctor.reference import curve_name, reference_for

ODD = 10.0  # learning rate over the recipe's
BEHIND, FAR_BEHIND = 1.15, 1.4  # loss over the reference's
NOTHING = 1.2  # loss over that of a network that says 0: what training must not end above
NO_BETTER = 1.25  # loss in a bin over that of the best line
NO_VARIANCE = 1e-6  # loss of the best line, below which all samples are one
MATTERS = 0.05  # of the loss of a network that says 0: where the noise is nearly all, a line errs by next to nothing
APART = 2.0  # loss on held-out samples over that on training ones


def finite(losses: list[float]) -> bool:
    """Whether all are numbers."""
    return all(abs(loss) < float("inf") for loss in losses)


def against_reference(subject: Subject, errors: Tensor, drawn: Trials) -> Check:
    """Is the loss of the averaged weights, by bin of the time, where the recipe's was?"""
    name, config, weights = "loss against the recipe's", subject.config, subject.weights
    assert weights is not None
    reference = reference_for(config, weights.step)
    if isinstance(reference, str):
        return unknown(name, reference)
    loss = by_bin(errors, drawn.bins)
    ratios = [a / b for a, b in zip(loss, reference.loss, strict=True)]
    ratio = fmean(loss) / fmean(reference.loss)
    value = {"ratio": ratio, "ratios": ratios, "loss": loss, "reference": reference.loss, "at": reference.step}
    figure = f"{ratio:.2f} × that of {curve_name(config)} at step {reference.step:,.0f}"
    expected = f"at most {BEHIND} ×"
    if not reference.like:
        reason = "the recipe has another network, optimizer or density of times, so that this is no judgement"
        return Check(name, "info", figure, value, reason=reason)
    if finite(loss) and ratio <= BEHIND:
        return Check(name, "ok", figure, value, expected)
    worst = max(range(BINS), key=lambda b: ratios[b])
    reason = f"most at t = {worst / BINS:.2f} to {(worst + 1) / BINS:.2f}, where it is {ratios[worst]:.3g} ×"
    mark: Mark = "warning" if ratio <= FAR_BEHIND else "bad"
    return Check(name, mark, figure, value, expected, reason, _other_than_recipe(config))


def _other_than_recipe(config: Config) -> str:
    recipe = recipe_of(config)
    if recipe is not None and config.lr > recipe.lr:
        return smaller_lr(config)
    return "see which settings differ from the recipe's, whether the averaged weights follow, and what the labels say"


def by_time(subject: Subject, errors: Tensor, raw: Tensor, drawn: Trials, least: Bounds) -> Check:
    """Is the loss, at each time, below what needs no training?"""
    name, weights = "loss by time", subject.weights
    assert weights is not None
    loss = by_bin(errors, drawn.bins)
    value = {"averaged": loss, "raw": by_bin(raw, drawn.bins), "nothing": least.nothing, "linear": least.linear}
    figure = f"{fmean(loss):.3g} in the mean; {' '.join(f'{x:.2g}' for x in loss)} from t = 0 to 1"
    worth, line = fmean(loss) / fmean(least.nothing), fmean(least.linear)
    expected = f"below {line:.3g}, that of the best line through each coordinate"
    if not finite(loss):
        reason = "the network's answers are no numbers"
        return Check(name, "bad", figure, {}, expected, reason, smaller_lr(subject.config))
    if worth > NOTHING:
        reason = f"{worth:.3g} × that of a network that says 0: training ran away"
        return Check(name, "bad", figure, value, expected, reason, smaller_lr(subject.config))
    if line < NO_VARIANCE:
        return unknown(name, f"{figure}; the samples do not differ, so that there is nothing to compare it with")
    if weights.step < EARLY:
        return unknown(name, f"{figure}; it is too early to compare it: {EARLY} steps are needed")
    if fmean(loss) >= line:
        return _above_the_line(Check(name, "unknown", figure, value, expected), subject, worth, fmean(loss) / line)
    beyond = [b for b in range(BINS) if loss[b] > NO_BETTER * least.linear[b] + MATTERS * least.nothing[b]]
    if beyond and weights.step >= subject.config.steps / 2:
        reason = f"above the best line's at t = {', '.join(f'{b / BINS:.2f} to {(b + 1) / BINS:.2f}' for b in beyond)}"
        advice = "train longer; process.shift and process.times decide which times are trained most"
        return Check(name, "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)


def _above_the_line(found: Check, subject: Subject, worth: float, beyond: float) -> Check:
    """What to make of a network that is worse than a line: nothing in the first half, unless its learning rate is odd.

    Args:
        found: the check without a judgement.
        subject: the run.
        worth: its loss over that of a network that says 0.
        beyond: its loss over the line's.
    """
    config, weights = subject.config, subject.weights
    assert weights is not None
    recipe = recipe_of(config)
    reason = f"it is {beyond:.3g} × that: the network knows less than each coordinate by itself"
    if recipe is not None and config.lr >= ODD * recipe.lr:
        return replace(found, mark="bad", reason=reason, advice=smaller_lr(config))
    if weights.step < config.steps / 2:
        return replace(found, reason=f"{found.figure}; {reason}, which may change: it is not half trained")
    advice = "train longer; if it stays so, look at the data, try another learning rate or a wider network"
    return replace(found, mark="bad" if worth >= 1 else "warning", reason=reason, advice=advice)


def memorisation(subject: Subject, weights: Weights, errors: Tensor, n: int) -> Check | None:
    """Is the loss on samples never seen what it is on those that were? None for data that never come again."""
    name, dataset = "memorisation", subject.dataset
    if not isinstance(dataset, Digits | Images | Latents):
        return None
    if not isinstance(dataset, HeldOut):
        return unknown(name, "all images are trained on: none are held out to compare with")
    ratio = float(squared_errors(weights.averaged, held_out_trials(dataset, n)).mean() / errors.mean())
    value, expected = {"ratio": ratio}, f"at most {APART:g} ×"
    figure = f"the loss on held-out samples is {ratio:.2f} × that on training ones"
    if not ratio <= APART:
        reason = "the network knows its samples by heart"
        return Check(name, "warning", figure, value, expected, reason, "use an earlier checkpoint, or more data")
    return Check(name, "ok", figure, value, expected)
