"""Timing in rounds: all take turns within a round, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from scipy.stats import binom

Key = TypeVar("Key")
Work = Callable[[], object]
WARM_UP, MOST_CALLS = 7, 1000  # a training step on a CPU has its huge pages after the fifth


class Median(NamedTuple):
    """A median with the interval that covers it in 95 % of cases, from order statistics: no distribution is assumed.

    Below six values nothing narrower than all of them covers so much, and the interval is from least to largest.
    """

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> Median:
    """Of values that do not depend on each other."""
    ordered, n = sorted(values), len(values)
    outside = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    return Median(statistics.median(ordered), ordered[outside], ordered[n - 1 - outside])


def ratios(above: Sequence[float], below: Sequence[float]) -> Median:
    """The median over rounds of the quotient within a round."""
    return median([a / b for a, b in zip(above, below, strict=True)])


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Work, calls: int, device: torch.device) -> float:
    """Of one call, the mean over so many."""
    settle(device)
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    settle(device)
    return (time.perf_counter() - begun) / calls


def interleaved(
    turns: dict[Key, Work], rounds: int, turn: float, device: torch.device, warm_up: int = WARM_UP
) -> dict[Key, list[float]]:
    """Seconds of one call of each, in each round; every other round runs backwards.

    Args:
        turns: what to time.
        rounds: how often.
        turn: seconds a turn should take at least; as many calls as that needs, at least one.
        device: that works; it is waited for.
        warm_up: calls before the first round; the last of them says how many calls make a turn.
    """
    calls = {}
    for key, work in turns.items():
        for _ in range(warm_up - 1):
            work()
        calls[key] = min(MOST_CALLS, max(1, math.ceil(turn / seconds(work, 1, device))))
    measured: dict[Key, list[float]] = {key: [] for key in turns}
    for number in range(rounds):
        for key in reversed(turns) if number % 2 else turns:
            measured[key].append(seconds(turns[key], calls[key], device))
    return measured
