"""Checks of the loss: against the recipe's, against predictors without training, and on held-out samples."""

from __future__ import annotations

import math
from statistics import fmean

from torch import Tensor

from ditlab.data.dataset import HeldOut
from ditlab.data.digits import Digits
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.doctor.checks import Check, recipe_of, smaller_lr, unknown
from ditlab.doctor.evidence import Subject, Weights
from ditlab.doctor.metrics import EARLY
from ditlab.doctor.reference import curve_name, reference_for
from ditlab.doctor.trials import BINS, Bounds, Trials, by_bin, held_out_trials, squared_errors

ODD = 10.0  # learning rate over the recipe's
BEHIND, FAR_BEHIND = 1.15, 1.4  # loss over the reference's
DIVERGED = 1.2  # loss over that of predicting 0
NO_BETTER = 1.25  # loss in a bin over that of the linear fit
NO_VARIANCE = 1e-6  # loss of the linear fit, below which all samples are the same
MATTERS = 0.05  # share of the loss of predicting 0 that is tolerated, as a linear fit is near perfect at pure noise
APART = 2.0  # loss on held-out samples over that on training samples


def against_reference(subject: Subject, weights: Weights, errors: Tensor, drawn: Trials) -> Check:
    """Is the loss of the averaged weights, by bin of the time, at most the recipe's?"""
    name, config = "loss against the recipe's", subject.config
    reference = reference_for(config, weights.step)
    if isinstance(reference, str):
        return unknown(name, reference)
    loss = by_bin(errors, drawn.bins)
    ratios = [a / b for a, b in zip(loss, reference.loss, strict=True)]
    ratio = fmean(loss) / fmean(reference.loss)
    value = {"ratio": ratio, "ratios": ratios, "loss": loss, "reference": reference.loss, "at": reference.step}
    figure = f"{ratio:.2f} × that of {curve_name(config)} at step {reference.step:,.0f}"
    if not reference.like:
        reason = "the recipe has another network, optimizer or density of times, so the two cannot be compared"
        return Check(name, "info", figure, value, reason=reason)
    found = Check(name, "ok", figure, value, f"at most {BEHIND} ×")
    if all(map(math.isfinite, loss)) and ratio <= BEHIND:
        return found
    worst = max(range(BINS), key=lambda b: ratios[b])
    reason = f"highest at t = {worst / BINS:.2f} to {(worst + 1) / BINS:.2f}, where it is {ratios[worst]:.3g} ×"
    recipe = recipe_of(config)
    advice = "compare the settings with the recipe's, and see the checks of averaged weights and labels"
    if recipe is not None and config.lr > recipe.lr:
        advice = smaller_lr(config)
    return found.marked("warning" if ratio <= FAR_BEHIND else "bad", reason, advice)


def by_time(subject: Subject, weights: Weights, errors: Tensor, raw: Tensor, drawn: Trials, least: Bounds) -> Check:
    """Is the loss at each time below that of predictors without training?"""
    name, config, loss = "loss by time", subject.config, by_bin(errors, drawn.bins)
    value = {"averaged": loss, "raw": by_bin(raw, drawn.bins), "nothing": least.nothing, "linear": least.linear}
    figure = f"{fmean(loss):.3g} in the mean; {' '.join(f'{x:.2g}' for x in loss)} from t = 0 to 1"
    worth, line = fmean(loss) / fmean(least.nothing), fmean(least.linear)
    found = Check(name, "ok", figure, value, f"below {line:.3g}, that of a linear fit of each coordinate")
    if not all(map(math.isfinite, loss)):
        found = Check(name, "ok", figure, {}, found.expected)
        return found.marked("bad", "the network's outputs are not finite", smaller_lr(config))
    if worth > DIVERGED:
        return found.marked("bad", f"{worth:.3g} × that of predicting 0: training diverged", smaller_lr(config))
    if line < NO_VARIANCE:
        return unknown(name, f"{figure}; all samples are the same, so there is nothing to compare with")
    if weights.step < EARLY:
        return unknown(name, f"{figure}; too early to compare: {EARLY} steps are needed")
    if fmean(loss) >= line:
        return _above_linear_fit(found, subject, weights, worth, fmean(loss) / line)
    beyond = [b for b in range(BINS) if loss[b] > NO_BETTER * least.linear[b] + MATTERS * least.nothing[b]]
    if beyond and weights.step >= config.steps / 2:
        times = ", ".join(f"{b / BINS:.2f} to {(b + 1) / BINS:.2f}" for b in beyond)
        advice = "train longer; process.shift and process.times decide which times are trained most"
        return found.marked("warning", f"above that of the linear fit at t = {times}", advice)
    return found


def _above_linear_fit(found: Check, subject: Subject, weights: Weights, worth: float, beyond: float) -> Check:
    """Judge a network that is worse than a linear fit; in the first half only if its learning rate is odd.

    ``worth`` is its loss over that of predicting 0, ``beyond`` over that of the linear fit.
    """
    config, recipe = subject.config, recipe_of(subject.config)
    reason = f"it is {beyond:.3g} × that: the network does worse than a linear fit of each coordinate"
    if recipe is not None and config.lr >= ODD * recipe.lr:
        return found.marked("bad", reason, smaller_lr(config))
    if weights.step < config.steps / 2:
        return found.marked("unknown", f"{found.figure}; {reason}, which may change in the second half of training")
    advice = "train longer; if that does not help, check the data, or try another learning rate or a wider network"
    return found.marked("bad" if worth >= 1 else "warning", reason, advice)


def memorisation(subject: Subject, weights: Weights, errors: Tensor, n: int) -> Check | None:
    """Is the loss on held-out samples near that on training samples? None for data that never repeat."""
    name, dataset = "memorisation", subject.dataset
    if not isinstance(dataset, Digits | Images | Latents):
        return None
    if not isinstance(dataset, HeldOut):
        return unknown(name, "all images are used for training: none are held out to compare with")
    ratio = float(squared_errors(weights.averaged, held_out_trials(dataset, n)).mean() / errors.mean())
    figure = f"the loss on held-out samples is {ratio:.2f} × that on training samples"
    found = Check(name, "ok", figure, {"ratio": ratio}, f"at most {APART:g} ×")
    if ratio <= APART:
        return found
    return found.marked("warning", "the network has memorised its samples", "use an earlier checkpoint, or more data")
