"""What metrics.jsonl tells: whether the loss falls, steps that were skipped, gradients, gates and speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from statistics import median
from typing import Any

from ditlab.config import Config, MeanFlowConfig
from ditlab.doctor.advice import smaller_lr
from ditlab.doctor.checks import Check, Mark, unknown

Lines = Sequence[dict[str, Any]]

EARLY = 200  # steps before which little can be said of a network
FEWEST = 4  # lines with a figure, to say anything of its course
RISEN, DIVERGED = 1.3, 2.0  # loss now over its least; 1.00 to 1.04 in healthy runs
SPIKE = 3.0  # times the median of the five lines before
BORNE, TOO_MANY = 0.005, 0.05  # share of steps that were not learned from
STEEP = 100.0  # norm of the gradient over the clip; at most 2 in healthy runs
CLOSED, OPEN_WIDE, BURST = 1e-3, 3.0, 10.0  # mean |gate|; 0.02 to 0.5 in healthy runs
DEAD = 0.1  # the wider gate of a block over the median of all; 0.74 at the least in healthy runs
SLOWED = 0.3  # speed of the last fifth over the best fifth's; 0.46 at the least in runs beside other work


def from_metrics(config: Config, lines: Lines) -> list[Check]:
    """All checks that need the metrics alone."""
    return [
        training_curve(config, lines),
        skipped_steps(config, lines),
        gradient_norm(config, lines),
        gates(config, lines),
        throughput(lines),
    ]


def _course(lines: Lines, name: str) -> list[float]:
    """The numbers of that name, where a line has one."""
    values = (line.get(name) for line in lines)
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _means(values: Sequence[float], width: int) -> list[float]:
    """The mean of each ``width`` neighbours. The sums are exact, so that one large value spoils none that follow."""
    sums = list(accumulate(map(Fraction, values), initial=Fraction()))
    return [float(last - first) / width for first, last in zip(sums, sums[width:], strict=False)]


def training_curve(config: Config, lines: Lines) -> Check:
    """Does the loss fall, and has it stayed down?"""
    name, losses = "training curve", _course(lines, "loss")
    if isinstance(config.process, MeanFlowConfig) and config.process.adaptive_power > 0:
        return unknown(name, "MeanFlow's loss is divided by its own size, so that it stays near 1")
    if len(losses) < FEWEST:
        return unknown(name, f"{len(losses)} lines with a loss so far: it takes {FEWEST}")
    width = max(2, len(losses) // 10)
    means = _means(losses, width)
    last, least, first = means[-1], min(means), losses[0]
    if least <= 0:
        return unknown(name, "the loss is not above 0: it is no mean of squares")
    spikes = [i for i in range(1, len(losses)) if losses[i] > SPIKE * median(losses[max(0, i - 5) : i])]
    value = {"first": first, "least": least, "last": last, "over_least": last / least, "spikes": len(spikes)}
    figure = f"loss {first:.3g} at first, {last:.3g} now, {last / least:.2f} × its least"
    expected = f"below its first value and {RISEN} × its least"
    advice = smaller_lr(config)
    if last > DIVERGED * least or last >= first:
        why = "the loss diverged" if last > DIVERGED * least else "the loss does not fall"
        return Check(name, "bad", figure, value, expected, f"{why}: the learning rate may be too high", advice)
    if last > RISEN * least:
        return Check(name, "warning", figure, value, expected, "the loss has risen again", advice)
    if len(spikes) > 0.05 * len(losses):
        reason = f"{len(spikes)} of {len(losses)} lines are spikes of more than {SPIKE:g} × those before"
        return Check(name, "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)


def skipped_steps(config: Config, lines: Lines) -> Check:
    """How many steps could not be learned from?"""
    name = "skipped steps"
    if not lines or not lines[-1]["step"]:
        return unknown(name, "no steps so far")
    steps, skipped = int(lines[-1]["step"]), [line for line in lines if "skipped" in line]
    share = len(skipped) / steps
    value = {"skipped": len(skipped), "share": share, "last": skipped[-1]["skipped"] if skipped else None}
    figure, expected = f"{len(skipped)} of {steps:,}", f"at most {BORNE:.1%}"
    not_learned = {line["step"] for line in skipped}
    at_end = next(count for count in range(steps + 1) if steps - count not in not_learned)
    reason = f"the last of them: {value['last']}"
    advice = f"see the lines with 'skipped' in metrics.jsonl, and failures/; {smaller_lr(config)}"
    if at_end >= config.bad_steps:
        reason = f"training ended after {at_end} in a row; {reason}"
        return Check(name, "bad", figure, value, expected, reason, advice)
    if share > BORNE:
        return Check(name, "bad" if share > TOO_MANY else "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)


def gradient_norm(config: Config, lines: Lines) -> Check:
    """How large is the gradient beside what it is clipped to, in the second half?"""
    name, norms = "gradient norm", _course(lines, "grad_norm")
    if not norms:
        return unknown(name, "no lines with a gradient so far")
    late = norms[len(norms) // 2 :]
    typical, clipped = median(late), sum(norm > config.grad_clip for norm in late) / len(late)
    value = {"median": typical, "clip": config.grad_clip, "clipped": clipped}
    figure = f"{typical:.3g} in the median, clipped to {config.grad_clip:g} in {clipped:.0%} of the lines"
    expected = f"below {STEEP:g} × the clip"
    if typical > STEEP * config.grad_clip:
        reason = f"it is {typical / config.grad_clip:.3g} × what it is clipped to: training runs away"
        return Check(name, "bad", figure, value, expected, reason, smaller_lr(config))
    return Check(name, "ok", figure, value, expected)


def gates(config: Config, lines: Lines) -> Check:
    """Do the gates of adaLN-Zero open, all of them, and not beyond bounds?"""
    name = "gates"
    recorded = [line for line in lines if line.get("gates") and isinstance(line.get("effective_depth"), int | float)]
    if not recorded:
        return unknown(name, "this network has none, or none are recorded yet")
    step, last = int(recorded[-1]["step"]), recorded[-1]["gates"]
    blocks = list(zip(last["attn"], last["mlp"], strict=True))
    every = [gate for block in blocks for gate in block]
    value = {"step": step, "attn": last["attn"], "mlp": last["mlp"], "effective_depth": recorded[-1]["effective_depth"]}
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
    dead = [i for i, block in enumerate(blocks) if max(block) < DEAD * median(every)]
    if dead:
        reason = f"blocks that do next to nothing, counted from 0: {', '.join(map(str, dead))}"
        return Check(name, "warning", figure, value, expected, reason, "a smaller --network.depth may do as well")
    return Check(name, "ok", figure, value, expected)


def throughput(lines: Lines) -> Check:
    """Is training as fast as it was?"""
    name, speeds = "throughput", _course(lines, "images_per_s")
    if len(speeds) < 2 * FEWEST:
        return unknown(name, f"{len(speeds)} lines with a speed so far: it takes {2 * FEWEST}")
    cuts = [len(speeds) * i // 5 for i in range(6)]
    fifths = [median(speeds[a:b]) for a, b in pairwise(cuts)]
    value = {"median": median(speeds), "fifths": fifths}
    figure, expected = f"{median(speeds):,.0f} samples/s", f"{SLOWED:g} × its best or more"
    if fifths[-1] < SLOWED * max(fifths):
        reason = f"{fifths[-1]:,.0f} samples/s at the end, {max(fifths):,.0f} before"
        advice = "see whether other work shares the machine; where batches come slowly, add --workers"
        return Check(name, "warning", figure, value, expected, reason, advice)
    return Check(name, "ok", figure, value, expected)
