"""Memory of a CPU: keep what steps free for the next step, and put it into huge pages."""

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
KEPT = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0}  # never trim the heap, never allocate by mmap
USUAL = {
    M_TRIM_THRESHOLD: 2**26,
    M_MMAP_THRESHOLD: 2**25,
    M_MMAP_MAX: 2**16,
}  # the most glibc adapts to

_lock = threading.Lock()
_keeping = 0  # blocks of freed_memory_kept that are active


def must_have_room(what: str, numbers: int) -> None:
    """Refuse what exceeds this machine's memory, before the system kills the process.

    Args:
        what: the thing, and how to make it smaller, in words.
        numbers: how many numbers of 4 bytes it takes.

    Raises:
        InputError: the machine has less memory.
    """
    there = physical()
    if 4 * numbers > there:
        raise InputError(
            f"{what} takes {4 * numbers / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB: choose a smaller one"
        )


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Keep freed memory in the process within the block, for the next tensor; the last block to end returns it.

    glibc returns large blocks to Linux at once, and Linux hands out zeroed pages, so each step takes thousands of page
    faults (docs/decisions/0016). The setting applies to the whole process; without glibc, or if the ``device`` that
    computes is not "cpu", nothing happens.
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
    """Ask Linux to move this process's present memory into pages of 2 MiB.

    Every step passes over the same few hundred megabytes, and with pages of 4 KiB it keeps missing the translation
    cache. This is a hint: without huge pages, or on another system, nothing happens.
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
    """Start and end addresses of the heap and of writable anonymous memory."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split()
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, _, end = addresses.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def physical() -> float:
    """Bytes of main memory of this machine; infinite if the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf
