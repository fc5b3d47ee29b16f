"""Time in rounds in which all take turns, so that noise on the machine affects all alike."""

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

from ditlab.core.errors import first_line

Key = TypeVar("Key")
Work = Callable[[], object]
WARM_UP, MOST_CALLS = 6, 1000  # a training step on a CPU has its huge pages after five calls


class Median(NamedTuple):
    """A median with its 95 % interval from order statistics, which assumes no distribution.

    With fewer than six values the interval is from the smallest to the largest, and covers less.
    """

    value: float
    low: float
    high: float


def _outside(n: int) -> int:
    """How many of n sorted values lie outside the interval on each side."""
    return max(0, int(binom.ppf(0.025, n, 0.5)) - 1)


def coverage(n: int) -> float:
    """The probability that the interval of ``median`` covers the median: at least 0.95 for six values or more."""
    return float(1 - 2 * binom.cdf(_outside(n), n, 0.5))


def median(values: Sequence[float]) -> Median:
    """Median of independent values."""
    ordered, outside = sorted(values), _outside(len(values))
    return Median(statistics.median(ordered), ordered[outside], ordered[-1 - outside])


def ratios(above: Sequence[float], below: Sequence[float]) -> Median:
    """The median of the quotients within each round."""
    return median([a / b for a, b in zip(above, below, strict=True)])


@dataclass(frozen=True)
class Elsewhere:
    """Work of another process; ``timed(calls)`` returns its mean seconds per call."""

    timed: Callable[[int], float]

    def __call__(self) -> float:
        return self.timed(1)


def settle(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Work, calls: int, device: torch.device) -> float:
    """Mean seconds per call."""
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
        refused.update(dict.fromkeys(keys, f"out of memory: {first_line(error, 160)}"))
    else:
        return
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without CUDA


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; the CPU allocator has no error type for it, so the message decides."""
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
    """Seconds per call of each, in each round; every other round runs in reverse order.

    Args:
        turns: what to time; what runs out of memory is removed.
        rounds: number of rounds.
        turn: least seconds of a turn, which decides its number of calls.
        device: device that is waited for.
        warm_up: calls before the first round; the last one decides how many calls make a turn.
        budget: least number of rounds, and seconds after which no further round begins; None runs all rounds.
        refused: collects what ran out of memory, and the reason; None raises the error.
        say: called with what is being warmed up.
        count: called with each round's number, from 1, before it begins.
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
