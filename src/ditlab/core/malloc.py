"""Memory of a CPU that steps of training or sampling use again and again: kept between them, and in large pages."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditlab.core.errors import InputError

HUGE = 2**21  # bytes of a huge page on x86-64, and on ARM with pages of 4 KiB
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc
KEPT = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0}  # give nothing back, and take nothing that would be given back
USUAL = {M_TRIM_THRESHOLD: 2**26, M_MMAP_THRESHOLD: 2**25, M_MMAP_MAX: 2**16}  # the most that glibc itself grows to

_lock = threading.Lock()
_keeping = 0  # blocks that are entered


def must_have_room(what: str, numbers: int) -> None:
    """Refuse what this machine's memory cannot hold, before the system ends whoever asks for it.

    Args:
        what: it is, and how to make it smaller, for people.
        numbers: of 4 bytes.

    Raises:
        InputError: there is less memory than that.
    """
    there = physical()
    if 4 * numbers > there:
        raise InputError(
            f"{what} takes {4 * numbers / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB: choose a smaller one"
        )


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Within it memory that is freed stays with the process, for the next tensor; after the last it is given back.

    glibc gives large blocks back to Linux at once, and Linux hands out pages of zeros: a step whose activations come
    and go takes thousands of page faults (docs/decisions/0016). Of the process as a whole; without glibc nothing
    happens.

    Args:
        device: the kind that computes, such as "cpu"; for others nothing happens.
    """
    global _keeping
    if device != "cpu":
        yield
        return
    with _lock:
        _keeping += 1
        if _keeping == 1:
            _set(KEPT)
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if _keeping == 0:
                _set(USUAL)


def _set(options: dict[int, int]) -> None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return
    for option, value in options.items():
        libc.mallopt(option, value)
    if options is USUAL:
        libc.malloc_trim(0)


def use_huge_pages() -> None:
    """Ask Linux to gather the memory this process has now into pages of 2 MiB.

    Activations of a step come and go through the same few hundred megabytes; in pages of 4 KiB every pass over them
    misses the translation cache. A hint: where the system does not offer huge pages, or is not Linux, nothing happens.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    for start, end in _private_memory():
        first, last = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if first < last:
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def _private_memory() -> list[tuple[int, int]]:
    """Addresses of the heap and of the anonymous memory that can be written."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, *_, inode = line.split()[:5]
        name = line.split()[5:]
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, _, end = addresses.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def physical() -> float:
    """Bytes of main memory of this machine; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf
