"""How many threads to use on a CPU: how many may run, and how many are fastest beside other work."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CHAIN = 8  # products in a trial
TRIALS = 3, 24  # least and most trials of each number of threads
LONGEST = 0.3  # seconds after which no further trial begins
WIDTH, OPERATIONS = 512, 2**24  # largest width of a product, and most multiply-accumulates of all but the narrowest
CLEARLY = 1.1  # speed-up required of fewer threads, so that chance does not decide a run's bytes


def limit() -> int:
    """How many threads the process can run at once: its physical cores, within the quota of its container.

    torch only knows the cores; threads that share a core, or its time, wait for each other.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return int(max(1, min(_cores(cpus), share())))


def _cores(cpus: set[int]) -> int:
    """Number of physical cores among these logical ones."""
    found = set()
    for cpu in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            found.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:  # another system than Linux
            return len(cpus)
    return len(found)


def share(root: Path = Path("/")) -> float:
    """The CPU quota of the control group, in cores: the least of its own and its parents', or infinity.

    Args:
        root: root of the file system.
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
    """Quota of one control group: "200000 100000" in cpu.max, or the same in two files (version 1)."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (OSError, ValueError):  # no quota, or "max"
        return float("inf")


def chosen_by_user() -> bool:
    """Whether environment variables set the number of threads."""
    return any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def quickest(rows: int, width: int, most: int) -> tuple[int, float]:
    """The currently fastest number of threads, and its speed-up over the largest number.

    On a quiet machine that is the largest. If other programs compute, all threads of a product wait for the one whose
    core is taken, and fewer threads, or one, can be many times faster.

    Args:
        rows: rows of the products (rows, width) · (width, width) to come.
        width: see rows.
        most: most threads to use, also limited by ``torch.get_num_threads``. If OMP_NUM_THREADS or MKL_NUM_THREADS is
            set, it decides.
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
        _trial(number, x, w)  # creates threads and kernels
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
    """Seconds of ``CHAIN`` products with so many threads."""
    with threads(number), torch.no_grad():
        begun = time.perf_counter()
        for _ in range(CHAIN):
            torch.addmm(x, x, w)
        return time.perf_counter() - begun


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Use so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
