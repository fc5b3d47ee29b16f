"""Decode all images of a source, in order, with threads. Imports no torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from ditlab.core.errors import InputError
from ditlab.data.images.decode import Picture, decode
from ditlab.data.images.labels import readable
from ditlab.data.images.source import Progress, Rejected, Source, Unusable
from ditlab.data.images.wide import Window

CHUNK = 2**22  # bytes of pixels that a thread decodes before it hands them on
MOST = 64  # images
NAMED = 3  # bad files in a message


def decode_all(
    source: Source,
    size: tuple[int, int],
    channels: int | None,
    progress: Progress | None = None,
    numbers: range | None = None,
    window: Window | None = None,
) -> Iterator[Picture | Rejected]:
    """Every image of a source in order, or why it cannot be used.

    Threads decode some chunks ahead, for Pillow lets them run at the same time: the memory is that of those chunks.

    Args:
        size, channels, window: see ``decode``.
        numbers: which images; None is all.
    """

    def one(i: int) -> Picture | Rejected:
        try:
            return decode(source.read(i), size, channels, window)
        except Unusable as error:
            return Rejected(source.names[i], str(error))

    wanted = range(len(source.names)) if numbers is None else numbers
    chunk = max(1, min(MOST, CHUNK // ((channels or 3) * size[0] * size[1])))
    chunks = (wanted[first : first + chunk] for first in range(0, len(wanted), chunk))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    ahead: deque[tuple[int, Future[list[Picture | Rejected]]]] = deque()
    try:
        while True:
            for numbers in islice(chunks, 2 * threads - len(ahead)):
                ahead.append((numbers.stop, pool.submit(lambda numbers: [one(i) for i in numbers], numbers)))
            if not ahead:
                return
            done, future = ahead.popleft()
            yield from future.result()
            if progress is not None:
                progress(done - wanted.start, len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)


def refuse_bad(
    rejected: Sequence[Rejected], usable: int, allowed: float, quarantine: Path | None, how_to_raise: str
) -> None:
    """Raise ``InputError``, naming the first ones, if none or less than 1 − ``allowed`` of the images can be used.

    Args:
        quarantine: the file that lists all of them, if there is one.
        how_to_raise: the option that allows more, such as "with --bad-share".
    """
    bad, every = len(rejected), len(rejected) + usable
    if usable and bad <= allowed * every:
        return
    first = "; ".join(f"{readable(path)}: {reason}" for path, reason in rejected[:NAMED])
    listed = "" if quarantine is None else f"; all are listed in {quarantine}"
    enough = min(1.0, (int(100 * bad / every) + 1) / 100)
    raise InputError(
        f"{bad:,} of {every:,} files cannot be used, above the share of {allowed:g} that is allowed ({first}"
        f"{' …' if bad > NAMED else ''}){listed}. Fix or remove them"
        + (f", or raise the limit {how_to_raise} {enough}" if usable else "")
    )
