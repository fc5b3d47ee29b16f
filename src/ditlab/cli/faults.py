"""What the machine refuses, in words: memory, files, the disk, other processes. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
import sys

from ditlab.core.errors import first_line

NO_MEMORY = re.compile(r"can't allocate memory|(not enough|out of|cannot allocate) memory|bad_alloc", re.IGNORECASE)
NO_FILES = re.compile(r"too many open files", re.IGNORECASE)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LESS = {  # what takes less memory
    "train": "use a smaller --batch-size, or run it in parts with --accumulate 2; what was saved before is whole",
    "demo": "close other programs, and give the command again",
    "sample": "draw fewer at a time, with a smaller --n and another --seed",
    "eval": "use a smaller --batch-size, or a smaller --n",
    "doctor": "use a smaller --n",
    "latents": "use a smaller --batch-size",
    "data": "use a smaller --image-size",
}


def in_words(error: Exception, verb: str) -> tuple[str, int] | None:
    """A line and an exit status for an error of the machine's; None for a fault of ditlab's. It depends on the verb."""
    first, reason = first_line(error, 10**6), first_line(error)
    if isinstance(error, MemoryError) or NO_MEMORY.search(first):
        reason = next((some for some in first.split(". ") if NO_MEMORY.search(some)), reason)[:200]
        return f"out of memory ({reason}): {LESS.get(verb, 'free some, or choose something smaller')}", 1
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or NO_FILES.search(reason):
        return f"too many files are open at once ({reason}): allow more, with ulimit -n 4096 for example", 1
    if isinstance(error, OSError):
        if error.errno in FULL:
            return f"the disk is full ({error}); free some space. What was saved before is whole", 1
        if error.filename is not None:
            return f"cannot use {error.filename}: {error.strerror}", 2
        return f"the system refuses: {reason}", 1
    if isinstance(error, RuntimeError) and _of_another(error):
        return f"another of the {os.environ['WORLD_SIZE']} processes is gone ({reason}): give the same command again", 1
    return None


def _of_another(error: RuntimeError) -> bool:
    """Whether a process of several has waited in vain for another."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or "torch" not in sys.modules:
        return False
    from ditlab.core.distributed import is_lost

    return is_lost(error)
