"""Timing in rounds: all take turns within a round, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from scipy.stats import binom

Key = TypeVar("Key")
Work = Callable[[], object]
WARM_UP, MOST_CALLS = 6, 1000  # a training step on a CPU has its huge pages after the fifth


class Median(NamedTuple):
    """A median with the interval that covers it in 95 % of cases, from order statistics: no distribution is assumed.

    Below six values nothing narrower than all of them covers so much, and the interval is from least to largest.
    """

    value: float
    low: float
    high: float


def coverage(n: int) -> float:
    """In what share of cases the interval of ``median`` covers the median: at least 0.95 from six values on."""
    outside = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    return float(1 - 2 * binom.cdf(outside, n, 0.5))


def median(values: Sequence[float]) -> Median:
    """Of values that do not depend on each other."""
    ordered, n = sorted(values), len(values)
    outside = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
    return Median(statistics.median(ordered), ordered[outside], ordered[n - 1 - outside])


def ratios(above: Sequence[float], below: Sequence[float]) -> Median:
    """The median over rounds of the quotient within a round."""
    return median([a / b for a, b in zip(above, below, strict=True)])


@dataclass(frozen=True)
class Elsewhere:
    """Work that another process does: ``timed(calls)`` are its seconds of one call, the mean over so many."""

    timed: Callable[[int], float]

    def __call__(self) -> float:
        return self.timed(1)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Work, calls: int, device: torch.device) -> float:
    """Of one call, the mean over so many."""
    if isinstance(work, Elsewhere):
        return work.timed(calls)
    settle(device)
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    settle(device)
    return (time.perf_counter() - begun) / calls


@contextmanager
def refusing(keys: Iterable[Key], refused: dict[Key, str] | None) -> Iterator[None]:
    """If memory runs out, record the reason for these keys and continue; if ``refused`` is None, raise the error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if refused is None or not is_out_of_memory(error):
            raise
        refused.update(dict.fromkeys(keys, f"out of memory: {str(error).splitlines()[0][:160] if str(error) else ''}"))
    else:
        return
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where there is none


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; the allocator of a CPU has no type for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        said in str(error)
        for said in ("can't allocate memory", "OutOfMemoryError", "MemoryError", "CUDA out of memory")
    )


def interleaved(
    turns: dict[Key, Work],
    rounds: int,
    turn: float,
    device: torch.device,
    warm_up: int = WARM_UP,
    *,
    budget: tuple[int, float] | None = None,
    refused: dict[Key, str] | None = None,
    say: Callable[[Key], None] = lambda _: None,
    count: Callable[[int], None] = lambda _: None,
) -> dict[Key, list[float]]:
    """Seconds of one call of each, in each round; every other round runs backwards.

    Args:
        turns: what to time; what is refused is taken out of it.
        rounds: how often.
        turn: seconds a turn should take at least; as many calls as that needs, at least one.
        device: that works; it is waited for.
        warm_up: calls before the first round; the last of them says how many calls make a turn.
        budget: the least number of rounds, and the seconds after which no further round begins; None takes all rounds.
        refused: is told what there was not the memory for; None raises the error.
        say: is told what is warmed up.
        count: is told each round's number, from 1, before it begins.
    """
    calls: dict[Key, int] = {}
    for key, work in list(turns.items()):
        say(key)
        with refusing([key], refused):
            for _ in range(warm_up - 1):
                work()
            calls[key] = min(MOST_CALLS, max(1, math.ceil(turn / seconds(work, 1, device))))
    begun, (least, most) = time.perf_counter(), budget or (rounds, math.inf)
    measured: dict[Key, list[float]] = {key: [] for key in calls}
    for number in range(rounds):
        if number >= least and time.perf_counter() - begun > most:
            break
        count(number + 1)
        for key in list(reversed(measured) if number % 2 else measured):
            with refusing([key], refused):
                measured[key].append(seconds(turns[key], calls[key], device))
            if refused is not None and key in refused:
                del measured[key]
    for key in refused or ():
        turns.pop(key, None)
    return measured
