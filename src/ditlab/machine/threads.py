"""How many threads a CPU's work gets: what the process may use, and what pays beside other work."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CHAIN = 8  # products of a trial
TRIALS = 3, 24  # of each number of threads, at least and at most
LONGEST = 0.3  # seconds of all trials, after which no further one begins
WIDTH, OPERATIONS = 512, 2**24  # of a product, at most: its width and, but for the narrowest, multiply-accumulates
CLEARLY = 1.1  # times as quick that fewer threads have to be, so that chance does not decide a run's bytes


def limit() -> int:
    """Threads that the process can run at once: its cores, physical ones, and no more than a container's share.

    torch knows of the first alone, and two threads that share a core, or the time of one, wait for each other.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return int(max(1, min(_cores(cpus), share())))


def _cores(cpus: set[int]) -> int:
    """Physical cores among these logical ones."""
    found = set()
    for cpu in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            found.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:  # another system than Linux
            return len(cpus)
    return len(found)


def share(root: Path = Path("/")) -> float:
    """The processor time a control group grants, in cores: the least of its own and of those around it, or infinity.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system than Linux
        return float("inf")
    found = [float("inf")]
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if number == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"]
        else:
            continue
        for mount in mounts:
            folder = mount / place.lstrip("/")
            while folder.is_relative_to(mount):
                found.append(_quota(folder))
                folder = folder.parent
    return min(found)


def _quota(folder: Path) -> float:
    """What one control group grants: "200000 100000" of cpu.max, or the same in two files of the older version."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (OSError, ValueError):  # there is none, or it is "max"
        return float("inf")


def chosen_by_user() -> bool:
    """Whether the environment says how many threads there are to be."""
    return any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def quickest(rows: int, width: int, most: int) -> tuple[int, float]:
    """The number of threads that is the quickest now, and how many times as quick it is as all that there are.

    All are taken on a quiet machine. Where others compute, the threads of a product wait for the one whose core is
    taken, and fewer threads, or one, are many times as quick.

    Args:
        rows, width: of the products that are to come, (rows, width) · (width, width).
        most: how many there may be. What the environment says, or ``torch.set_num_threads`` did, is not exceeded; where
            OMP_NUM_THREADS or MKL_NUM_THREADS is set, it is what is used.
    """
    if chosen_by_user():
        return torch.get_num_threads(), 1.0
    most = min(most, torch.get_num_threads())
    numbers = [most]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    if most == 1:
        return 1, 1.0
    width = min(width, WIDTH)
    x, w = torch.zeros(min(rows, max(64, OPERATIONS // width**2)), width), torch.zeros(width, width)
    seconds: defaultdict[int, float] = defaultdict(float)
    for number in numbers:
        _trial(number, x, w)  # threads and kernels are made
    begun = time.perf_counter()
    for turn in range(TRIALS[1]):
        if turn >= TRIALS[0] and time.perf_counter() - begun > LONGEST:
            break
        for number in numbers if turn % 2 else reversed(numbers):
            seconds[number] += _trial(number, x, w)
    best = min(numbers, key=lambda number: seconds[number])
    gain = seconds[most] / seconds[best]
    return (best, gain) if gain > CLEARLY else (most, 1.0)


def _trial(number: int, x: torch.Tensor, w: torch.Tensor) -> float:
    """Seconds of a few products and sums with so many threads."""
    with threads(number), torch.no_grad():
        begun = time.perf_counter()
        for _ in range(CHAIN):
            torch.addmm(x, x, w)
        return time.perf_counter() - begun


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
