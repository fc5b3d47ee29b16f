"""Large pages for the memory that a training step uses again and again."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

HUGE = 2**21  # bytes of a huge page on x86-64, and on ARM with pages of 4 KiB
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1


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
