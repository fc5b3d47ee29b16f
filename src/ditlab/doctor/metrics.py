"""What metrics.jsonl tells: whether the loss falls, steps that were skipped, gradients, gates and speed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ditlab.config import Config
from ditlab.doctor.advice import smaller_lr
from ditlab.doctor.checks import Check, Mark, unknown

NUMBERS = ("loss", "grad_norm", "images_per_s")
EARLY = 200  # steps before which little can be said of a network
FEWEST = 4  # lines with a figure, to say anything of its course
RISEN, DIVERGED = 1.3, 2.0  # loss now over its least; 1.00 to 1.04 in healthy runs
SPIKE = 3.0  # times the median of the five lines before
BORNE, TOO_MANY = 0.005, 0.05  # share of steps that were not learned from
STEEP = 100.0  # norm of the gradient over the clip; at most 2 in healthy runs
CLOSED, OPEN_WIDE, BURST = 1e-3, 3.0, 10.0  # mean |gate|; 0.02 to 0.5 in healthy runs
DEAD = 0.1  # the wider gate of a block over the median of all; 0.74 at the least in healthy runs
SLOWED = 0.3  # speed of the last fifth over the best fifth's; 0.46 at the least in runs beside other work


@dataclass
class Course:
    """What is looked at of a run's metrics: numbers of each name, where a line has one, and little of the rest."""

    step: int = 0  # of the last line
    numbers: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in NUMBERS})
    skipped: array[int] = field(default_factory=lambda: array("q"))  # steps that were not learned from
    objection: str | None = None  # to the last of these
    gates: Mapping[str, Any] | None = None  # the last line that has some

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Course:
        """What lines tell; they are looked at one by one, and not kept."""
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
    """All checks that need the metrics alone."""
    return [
        training_curve(config, course),
        skipped_steps(config, course),
        gradient_norm(config, course),
        gates(config, course),
        throughput(course),
    ]


def _mean(values: np.ndarray) -> float:
    """Exactly summed, so that one large value spoils none of the others."""
    return math.fsum(values) / len(values)


def _least_mean(values: np.ndarray, width: int) -> float:
    """The least mean of ``width`` neighbours.

    Each sum is one of the rest of a block of that many and one of the beginning of the next, and nothing is taken away
    again: so one huge value spoils no sum but those that it is in.
    """
    count = len(values) - width + 1
    blocks = np.pad(values, (0, width - len(values) % width)).reshape(-1, width)
    rest = np.fliplr(np.fliplr(blocks).cumsum(1)).ravel()
    beginning = np.pad(blocks.cumsum(1)[:, :-1], ((0, 0), (1, 0))).ravel()
    first = int((rest[:count] + beginning[width : width + count]).argmin())
    return _mean(values[first : first + width])


def _spikes(losses: np.ndarray) -> int:
    """How many are more than ``SPIKE`` times the median of the five before, or of as many as there are."""
    early = sum(losses[i] > SPIKE * np.median(losses[:i]) for i in range(1, min(5, len(losses))))
    below = sum((SPIKE * losses[k : k - 5] < losses[5:]).astype(np.int8) for k in range(5))
    return int(early + np.count_nonzero(np.asarray(below) >= 3))


def training_curve(config: Config, course: Course) -> Check:
    """Does the loss fall, and has it stayed down?"""
    name, losses = "training curve", np.array(course.numbers["loss"])
    if config.process.steady is not None:
        return unknown(name, config.process.steady)
    if len(losses) < FEWEST:
        return unknown(name, f"{len(losses)} lines with a loss so far: it takes {FEWEST}")
    width = max(2, len(losses) // 10)
    last, least, first = _mean(losses[-width:]), _least_mean(losses, width), float(losses[0])
    if least <= 0:
        return unknown(name, "the loss is not above 0: it is no mean of squares")
    spikes = _spikes(losses)
    value = {"first": first, "least": least, "last": last, "over_least": last / least, "spikes": spikes}
    figure = f"loss {first:.3g} at first, {last:.3g} now, {last / least:.2f} × its least"
    expected = f"below its first value and {RISEN} × its least"
    advice = smaller_lr(config)
    if last > DIVERGED * least or last >= first:
        why = "the loss diverged" if last > DIVERGED * least else "the loss does not fall"
        return Check(name, "bad", figure, value, expected, f"{why}: the learning rate may be too high", advice)
    if last > RISEN * least:
        return Check(name, "warning", figure, value, expected, "the loss has risen again", advice)
    if spikes > 0.05 * len(losses):
        reason = f"{spikes} of {len(losses)} lines are spikes of more than {SPIKE:g} × those before"
        return Check(name, "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)


def skipped_steps(config: Config, course: Course) -> Check:
    """How many steps could not be learned from?"""
    name, steps, count = "skipped steps", course.step, len(course.skipped)
    if not steps:
        return unknown(name, "no steps so far")
    share = count / steps
    value = {"skipped": count, "share": share, "last": course.objection}
    figure, expected = f"{count} of {steps:,}", f"at most {BORNE:.1%}"
    at_end = 0
    while at_end < count and course.skipped[-1 - at_end] == steps - at_end:
        at_end += 1
    reason = f"the last of them: {course.objection}"
    advice = f"see the lines with 'skipped' in metrics.jsonl, and failures/; {smaller_lr(config)}"
    if at_end >= config.bad_steps:
        reason = f"training ended after {at_end} in a row; {reason}"
        return Check(name, "bad", figure, value, expected, reason, advice)
    if share > BORNE:
        return Check(name, "bad" if share > TOO_MANY else "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)


def gradient_norm(config: Config, course: Course) -> Check:
    """How large is the gradient beside what it is clipped to, in the second half?"""
    name, norms = "gradient norm", np.array(course.numbers["grad_norm"])
    if not len(norms):
        return unknown(name, "no lines with a gradient so far")
    late = norms[len(norms) // 2 :]
    typical, clipped = float(np.median(late)), float(np.mean(late > config.grad_clip))
    value = {"median": typical, "clip": config.grad_clip, "clipped": clipped}
    figure = f"{typical:.3g} in the median, clipped to {config.grad_clip:g} in {clipped:.0%} of the lines"
    expected = f"below {STEEP:g} × the clip"
    if typical > STEEP * config.grad_clip:
        reason = f"it is {typical / config.grad_clip:.3g} × what it is clipped to: training runs away"
        return Check(name, "bad", figure, value, expected, reason, smaller_lr(config))
    return Check(name, "ok", figure, value, expected)


def gates(config: Config, course: Course) -> Check:
    """Do the gates of adaLN-Zero open, all of them, and not beyond bounds?"""
    name, line = "gates", course.gates
    if line is None:
        return unknown(name, "this network has none, or none are recorded yet")
    step, last = int(line["step"]), line["gates"]
    blocks = list(zip(last["attn"], last["mlp"], strict=True))
    every = [gate for block in blocks for gate in block]
    value = {"step": step, "attn": last["attn"], "mlp": last["mlp"], "effective_depth": line["effective_depth"]}
    figure = f"mean |gate| {min(every):.3g} to {max(every):.3g}, effective depth {value['effective_depth']:.1f}"
    expected = f"from 0 to between {CLOSED:g} and {OPEN_WIDE:g}, in all blocks"
    if max(every) > OPEN_WIDE:
        mark: Mark = "bad" if max(every) > BURST else "warning"
        reason = f"the gates blow up, to {max(every):.3g}"
        return Check(name, mark, figure, value, expected, reason, smaller_lr(config))
    if step < EARLY:
        return unknown(name, f"they were last recorded at step {step}, and open in the first {EARLY}")
    if max(every) < CLOSED:
        advice = "raise --lr, or --warmup-steps is longer than the run"
        return Check(name, "bad", figure, value, expected, "they stay closed: the blocks do nothing", advice)
    dead = [i for i, block in enumerate(blocks) if max(block) < DEAD * np.median(every)]
    if dead:
        reason = f"blocks that do next to nothing, counted from 0: {', '.join(map(str, dead))}"
        return Check(name, "warning", figure, value, expected, reason, "a smaller --network.depth may do as well")
    return Check(name, "ok", figure, value, expected)


def throughput(course: Course) -> Check:
    """Is training as fast as it was?"""
    name, speeds = "throughput", np.array(course.numbers["images_per_s"])
    if len(speeds) < 2 * FEWEST:
        return unknown(name, f"{len(speeds)} lines with a speed so far: it takes {2 * FEWEST}")
    cuts = [len(speeds) * i // 5 for i in range(6)]
    fifths = [float(np.median(speeds[a:b])) for a, b in pairwise(cuts)]
    typical = float(np.median(speeds))
    value = {"median": typical, "fifths": fifths}
    figure, expected = f"{typical:,.0f} samples/s", f"{SLOWED:g} × its best or more"
    if fifths[-1] < SLOWED * max(fifths):
        reason = f"{fifths[-1]:,.0f} samples/s at the end, {max(fifths):,.0f} before"
        advice = "see whether other work shares the machine; where batches come slowly, add --workers"
        return Check(name, "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)
