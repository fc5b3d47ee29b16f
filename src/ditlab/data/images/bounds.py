"""What a file may ask for before its image is decoded: scans, and pieces of its header. Imports no torch."""

from __future__ import annotations

import io
import re

from ditlab.data.images.source import Unusable

MAX_SCANS = 64  # of a JPEG; cameras and programs write up to some twenty
MAX_WORK = 2**30  # scans times pixels: some ten seconds of decoding
MAX_READS = 2**18  # of a file: about a second in Pillow's readers of chunks, segments, blocks and tags
SEGMENT = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")  # a JPEG's marker that is followed by a length, or by an image
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA  # ITU-T T.81, table B.1


class Bounded(io.BytesIO):
    """The bytes of a file, which is read in so many pieces at most: a header of a million chunks takes a minute."""

    left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Unusable(f"too many pieces: the file is read in more than {MAX_READS:,}; save it anew")
        return super().read(size)


def refuse_scans(body: bytes, pixels: int, most_work: int = MAX_WORK) -> None:
    """Raise ``Unusable`` for a JPEG whose scans, each a pass over all ``pixels``, would take minutes to decode.

    ``body`` is the whole file, of whichever format; ``most_work`` the limit of scans times pixels.
    """
    quickly = body.count(b"\xff\xda")  # which counts those of thumbnails too
    if not body.startswith(b"\xff\xd8") or quickly <= min(MAX_SCANS, most_work // max(1, pixels)):
        return
    found = _scans(body)
    if found > MAX_SCANS:
        raise Unusable(f"too many scans: more than {MAX_SCANS} in a JPEG; save it anew")
    if found * pixels > most_work:
        raise Unusable(f"too many scans: {found} of {pixels:,} pixels; save it anew, not progressive")


def _scans(body: bytes) -> int:
    """How many scans the first image of a JPEG has, counted up to the limit and one."""
    at, found = 2, 0
    for _ in range(MAX_READS):
        marker = SEGMENT.search(body, at)
        if marker is None or marker[1][0] == EOI or found > MAX_SCANS:
            break
        found += marker[1][0] == SOS
        at = marker.end() + (0 if marker[1][0] == SOI else int.from_bytes(body[marker.end() : marker.end() + 2]))
    return found
