"""Checks of metrics.jsonl: training curve, skipped steps, gradients, gates and speed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ditlab.config import Config
from ditlab.doctor.checks import Check, smaller_lr, unknown

NUMBERS = ("loss", "grad_norm", "images_per_s")
EARLY = 200  # steps before which a network can hardly be judged
FEWEST = 4  # lines needed to judge a curve
RISEN, DIVERGED = 1.3, 2.0  # loss now over its minimum; 1.00 to 1.04 in healthy runs
SPIKE = 3.0  # times the median of the five lines before
MANY, TOO_MANY = 0.005, 0.05  # share of skipped steps
STEEP = 100.0  # norm of the gradient over the clip; at most 2 in healthy runs
CLOSED, OPEN_WIDE, BURST = 1e-3, 3.0, 10.0  # mean |gate|; 0.02 to 0.5 in healthy runs
DEAD = 0.1  # the wider gate of a block over the median of all; at least 0.74 in healthy runs
SLOWED = 0.3  # speed of the last fifth over that of the best; at least 0.46 in runs beside other work


@dataclass
class Course:
    """Summary of a run's metrics: the curves of ``NUMBERS``, skipped steps and the last gates."""

    step: int = 0  # of the last line
    numbers: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in NUMBERS})
    skipped: array[int] = field(default_factory=lambda: array("q"))  # steps
    objection: str | None = None  # reason for skipping the last one
    gates: Mapping[str, Any] | None = None  # the last line with gates

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Course:
        """Summarise lines, one at a time, without keeping them."""
        course = cls()
        for line in lines:
            course.step = int(line["step"])
            for name, numbers in course.numbers.items():
                value = line.get(name)
                if isinstance(value, int | float) and math.isfinite(value):
                    numbers.append(value)
            if "skipped" in line:
                course.skipped.append(course.step)
                course.objection = line["skipped"]
            if line.get("gates") and isinstance(line.get("effective_depth"), int | float):
                course.gates = line
        return course


def from_metrics(config: Config, course: Course) -> list[Check]:
    """All checks that only need the metrics."""
    return [
        training_curve(config, course),
        skipped_steps(config, course),
        gradient_norm(config, course),
        gates(config, course),
        throughput(course),
    ]


def _mean(values: np.ndarray) -> float:
    """The mean by an exact sum, in which one large value spoils no other."""
    return math.fsum(values) / len(values)


def _least_mean(values: np.ndarray, width: int) -> float:
    """The least mean over windows of ``width`` values.

    A window is the tail of one block of ``width`` values and the head of the next, so nothing is ever subtracted, and a
    huge value only spoils the windows that contain it.
    """
    count = len(values) - width + 1
    blocks = np.pad(values, (0, width - len(values) % width)).reshape(-1, width)
    rest = np.fliplr(np.fliplr(blocks).cumsum(1)).ravel()
    beginning = np.pad(blocks.cumsum(1)[:, :-1], ((0, 0), (1, 0))).ravel()
    first = int((rest[:count] + beginning[width : width + count]).argmin())
    return _mean(values[first : first + width])


def _spikes(losses: np.ndarray) -> int:
    """Number of losses above ``SPIKE`` times the median of the five before, or of fewer at the start."""
    early = sum(losses[i] > SPIKE * np.median(losses[:i]) for i in range(1, min(5, len(losses))))
    below = sum((SPIKE * losses[k : k - 5] < losses[5:]).astype(np.int8) for k in range(5))
    return int(early + np.count_nonzero(np.asarray(below) >= 3))


def training_curve(config: Config, course: Course) -> Check:
    """Does the loss fall, and has it stayed down?"""
    name, losses = "training curve", np.array(course.numbers["loss"])
    if config.process.steady is not None:
        return unknown(name, config.process.steady)
    if len(losses) < FEWEST:
        return unknown(name, f"{len(losses)} lines with a loss so far: {FEWEST} are needed")
    width = max(2, len(losses) // 10)
    last, least, first = _mean(losses[-width:]), _least_mean(losses, width), float(losses[0])
    if least <= 0:
        return unknown(name, "the loss is not above 0, as a mean of squares would be")
    spikes = _spikes(losses)
    value = {"first": first, "least": least, "last": last, "over_least": last / least, "spikes": spikes}
    figure = f"loss {first:.3g} at first, {last:.3g} now, {last / least:.2f} × its least"
    found = Check(name, "ok", figure, value, f"below its first value and {RISEN} × its least")
    if last > DIVERGED * least or last >= first:
        why = "the loss diverged" if last > DIVERGED * least else "the loss does not fall"
        return found.marked("bad", f"{why}: the learning rate may be too high", smaller_lr(config))
    if last > RISEN * least:
        return found.marked("warning", "the loss has risen again", smaller_lr(config))
    if spikes > 0.05 * len(losses):
        reason = f"{spikes} of {len(losses)} lines are spikes of more than {SPIKE:g} × those before"
        return found.marked("warning", reason, smaller_lr(config))
    return found


def skipped_steps(config: Config, course: Course) -> Check:
    """How many steps were skipped?"""
    name, steps, count = "skipped steps", course.step, len(course.skipped)
    if not steps:
        return unknown(name, "no steps so far")
    share = count / steps
    value = {"skipped": count, "share": share, "last": course.objection}
    found = Check(name, "ok", f"{count} of {steps:,}", value, f"at most {MANY:.1%}")
    at_end = 0
    while at_end < count and course.skipped[-1 - at_end] == steps - at_end:
        at_end += 1
    reason = f"the last of them: {course.objection}"
    advice = f"see the lines with 'skipped' in metrics.jsonl, and failures/; {smaller_lr(config)}"
    if at_end >= config.bad_steps:
        return found.marked("bad", f"training ended after {at_end} in a row; {reason}", advice)
    return found.marked("bad" if share > TOO_MANY else "warning", reason, advice) if share > MANY else found


def gradient_norm(config: Config, course: Course) -> Check:
    """How large is the gradient norm in the second half, compared with the clip?"""
    name, norms = "gradient norm", np.array(course.numbers["grad_norm"])
    if not len(norms):
        return unknown(name, "no lines with a gradient so far")
    late = norms[len(norms) // 2 :]
    typical, clipped = float(np.median(late)), float(np.mean(late > config.grad_clip))
    value = {"median": typical, "clip": config.grad_clip, "clipped": clipped}
    figure = f"{typical:.3g} in the median, clipped to {config.grad_clip:g} in {clipped:.0%} of the lines"
    found = Check(name, "ok", figure, value, f"below {STEEP:g} × the clip")
    if typical > STEEP * config.grad_clip:
        reason = f"it is {typical / config.grad_clip:.3g} × the clip: training runs away"
        return found.marked("bad", reason, smaller_lr(config))
    return found


def gates(config: Config, course: Course) -> Check:
    """Do all gates of adaLN-Zero open, but not too far?"""
    name, line = "gates", course.gates
    if line is None:
        return unknown(name, "this network has none, or none were recorded yet")
    step, last = int(line["step"]), line["gates"]
    blocks = list(zip(last["attn"], last["mlp"], strict=True))
    every = [gate for block in blocks for gate in block]
    value = {"step": step, "attn": last["attn"], "mlp": last["mlp"], "effective_depth": line["effective_depth"]}
    figure = f"mean |gate| {min(every):.3g} to {max(every):.3g}, effective depth {value['effective_depth']:.1f}"
    found = Check(name, "ok", figure, value, f"from 0 to between {CLOSED:g} and {OPEN_WIDE:g}, in all blocks")
    if max(every) > OPEN_WIDE:
        reason = f"the gates blow up, to {max(every):.3g}"
        return found.marked("bad" if max(every) > BURST else "warning", reason, smaller_lr(config))
    if step < EARLY:
        return unknown(name, f"they were last recorded at step {step}, and open in the first {EARLY}")
    if max(every) < CLOSED:
        advice = "raise --lr, and check that --warmup-steps is shorter than the run"
        return found.marked("bad", "they stay closed: the blocks do nothing", advice)
    dead = [i for i, block in enumerate(blocks) if max(block) < DEAD * np.median(every)]
    if dead:
        reason = f"blocks that do next to nothing, counted from 0: {', '.join(map(str, dead))}"
        return found.marked("warning", reason, "a smaller --network.depth may do as well")
    return found


def throughput(course: Course) -> Check:
    """Is training as fast as it was?"""
    name, speeds = "throughput", np.array(course.numbers["images_per_s"])
    if len(speeds) < 2 * FEWEST:
        return unknown(name, f"{len(speeds)} lines with a speed so far: {2 * FEWEST} are needed")
    cuts = [len(speeds) * i // 5 for i in range(6)]
    fifths = [float(np.median(speeds[a:b])) for a, b in pairwise(cuts)]
    typical = float(np.median(speeds))
    value = {"median": typical, "fifths": fifths}
    found = Check(name, "ok", f"{typical:,.0f} samples/s", value, f"{SLOWED:g} × its best or more")
    if fifths[-1] < SLOWED * max(fifths):
        reason = f"{fifths[-1]:,.0f} samples/s at the end, {max(fifths):,.0f} before"
        return found.marked("warning", reason, "check for other work on the machine; if loading is slow, add --workers")
    return found
