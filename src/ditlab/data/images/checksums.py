"""Checksums of prepared images by blocks: flipped bytes show in no size and in no header. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from ditlab.data.images.source import Progress

BLOCK = 2**22  # bytes of a file that have a checksum of their own


def of_file(file: Path) -> Iterator[str]:
    """The sha256 of each block of a file, in order."""
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield hashlib.sha256(block).hexdigest()


def damaged(folder: Path, expected: Mapping[str, Sequence[str]], progress: Progress | None = None) -> list[str]:
    """The files of a folder that differ from the sha256 ``expected`` of their blocks, a line each."""
    lines, done, total = [], 0, sum(map(len, expected.values()))
    for name, blocks in expected.items():
        wrong = []
        for i, (found, wanted) in enumerate(zip_longest(of_file(folder / name), blocks)):
            wrong += [i] if found != wanted else []
            done += 1
            if progress is not None:
                progress(min(done, total), total)
        if wrong:
            where = f"{len(wrong):,} of {len(blocks):,} blocks, the first from byte {wrong[0] * BLOCK:,} on"
            lines.append(f"{folder / name} is not what was prepared: {where}")
    return lines
