"""Images in tar files: a webdataset's samples, or folders of classes. Imports neither torch nor numpy.

The files of a tar whose names are the same up to the first dot are one sample: ``cats/7.png`` is its image,
``cats/7.cls`` its label, ``cats/7.txt`` its caption. A sample without a label is of the class of its folder. Nothing is
unpacked, and nothing but image files, labels and captions is read.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError
from ditlab.data.images.labels import CAPTIONS, LABELS, Labels, by_folder, json_object, numbered
from ditlab.data.images.source import MAX_BYTES, SUFFIXES, Rejected, Unusable, too_large, why_unreadable

KEY = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)  # a sample's name and a file's suffixes
MAX_WORD = 2**16  # bytes of a label or a caption

Piece = tuple[int, int, int]  # number of the tar, place of the bytes in it, how many


class Archive:
    """The images in tar files; see ``Source``.

    Args:
        location: what a person named: a tar, or a folder of them.
        files: in order.
        column: suffix of the images that are used, such as "png" or "seg.png"; None is the one without further dots.

    Raises:
        InputError: a tar cannot be read, or holds no such images.
    """

    def __init__(self, location: str, files: Sequence[str], column: str | None = None) -> None:
        self.location, self._files = location, list(files)
        self.rejected: list[Rejected] = []
        self.other: Counter[str] = Counter()
        self.notes: list[str] = []
        samples = self._samples()
        if not samples:
            raise InputError(f"{location} has no rows")
        chosen = self._choose(samples, column)
        with_image = [(*sample, image) for sample, image in zip(samples.items(), chosen, strict=True) if image]
        self.names = [key for (_, key), _, _ in with_image]
        self._images = [pieces[image] for _, pieces, image in with_image]
        self.sizes = [size for _, _, size in self._images]
        self.stamp = str([(file, Path(file).stat().st_mtime_ns) for file in self._files])
        self.classes, self.labels = self._label([pieces for _, pieces, _ in with_image])
        self._json = [pieces.get("json") for _, pieces, _ in with_image]
        captions = [_first(CAPTIONS, pieces) for _, pieces, _ in with_image]
        self.captions = {i: self._word(piece) for i, piece in enumerate(captions) if piece is not None}

    def column(self, name: str) -> list[Any]:
        rows = [{} if piece is None else json_object(self._word(piece)) for piece in self._json]
        known = {key for row in rows for key in row}
        if name not in known:
            there = f"only {', '.join(sorted(known))}" if known else "and no .json files for it"
            raise InputError(f"{self.location} has no column {name}, {there}")
        return [row.get(name) for row in rows]

    def read(self, index: int) -> bytes:
        return self._bytes(self._images[index])

    def _bytes(self, piece: Piece) -> bytes:
        number, place, size = piece
        if size > MAX_BYTES:
            raise too_large(size)
        try:
            with Path(self._files[number]).open("rb") as stream:
                stream.seek(place)
                return stream.read(size)
        except OSError as error:
            raise Unusable(why_unreadable(error)) from None

    def _word(self, piece: Piece) -> str:
        """The text of a small file."""
        try:
            return self._bytes((piece[0], piece[1], min(piece[2], MAX_WORD))).decode("utf-8", "backslashreplace")
        except Unusable as error:
            raise InputError(f"{self._files[piece[0]]} {error}") from None

    def _samples(self) -> dict[tuple[int, str], dict[str, Piece]]:
        """The files of each sample by their suffixes, samples by the number of their tar and their name."""
        samples: dict[tuple[int, str], dict[str, Piece]] = {}
        for number, file in enumerate(self._files):
            try:
                with tarfile.open(file, "r:") as stream:
                    for member in iter(stream.next, None):
                        stream.members = []  # type: ignore[attr-defined] # which would hold all of them
                        name = member.name.removeprefix("./")
                        named, hidden = KEY.fullmatch(name), any(part.startswith(".") for part in name.split("/"))
                        if not member.isreg() or member.issparse() or named is None or hidden:
                            self.other.update([] if member.isdir() else ["" if member.isreg() else "no file"])
                            continue
                        piece = (number, member.offset_data, member.size)
                        samples.setdefault((number, named[1]), {})[named[2].lower()] = piece
            except (OSError, tarfile.TarError, ValueError) as error:
                why = " ".join(str(error).split())[:300] or type(error).__name__
                raise InputError(f"cannot read {file}: {why}; a compressed tar has to be unpacked first") from None
        return samples

    def _choose(self, samples: dict[tuple[int, str], dict[str, Piece]], column: str | None) -> list[str | None]:
        """The suffix of each sample's image, None where it has none."""
        counts = Counter(suffix for pieces in samples.values() for suffix in pieces)
        images = [suffix for suffix in counts if f".{suffix.rpartition('.')[2]}" in SUFFIXES]
        plain, dotted = ([suffix for suffix in images if ("." in suffix) is more] for more in (False, True))
        if column is not None:
            wanted = [column.lower().lstrip(".")]
            if not counts[wanted[0]]:
                raise InputError(f"{self.location} has no files *.{column}, but {_listed(counts)}")
        elif plain:
            wanted = plain
        elif len(dotted) > 1 and (len(dotted) >= len(samples) or all(s.partition(".")[0].isdecimal() for s in dotted)):
            raise InputError(
                f"{self.location}: names like img.{dotted[0]} make one sample of many images, for a sample's name ends "
                f"at its first dot; name them img-{dotted[0]}, or unpack them into a folder"
            )
        elif dotted:
            wanted = dotted[:1]
        else:
            raise InputError(f"{self.location} has no column of images, only {_listed(counts)}")
        chosen = [next((suffix for suffix in wanted if suffix in pieces), None) for pieces in samples.values()]
        used = Counter(suffix for suffix in chosen if suffix)
        left = {suffix: counts[suffix] - used[suffix] for suffix in images if counts[suffix] > used[suffix]}
        if left:
            others = ", ".join(f"{count:,} .{suffix}" for suffix, count in left.items())
            names = " and ".join(f".{suffix}" for suffix in used)
            self.notes.append(f"the images {names} are used, and not {others}: --data.image-column chooses")
        if without := sum(image is None for image in chosen):
            self.notes.append(f"{without:,} of {len(samples):,} samples have no image")
        known = {*images, *LABELS, *CAPTIONS}
        self.other.update({f".{suffix}": count for suffix, count in counts.items() if suffix not in known})
        return chosen

    def _label(self, samples: Sequence[dict[str, Piece]]) -> Labels:
        """Classes by their own files if all samples have one, else by folder."""
        pieces = [_first(LABELS, sample) for sample in samples]
        given = [self._word(piece).strip() for piece in pieces if piece is not None]
        if given and len(given) == len(samples):
            return numbered(given)
        if given:
            self.notes.append(
                f"{len(given):,} of {len(samples):,} images have a label of their own: these are not used"
            )
        return by_folder(self.names, self.notes)


def _first(names: Sequence[str], pieces: dict[str, Piece]) -> Piece | None:
    return next((pieces[name] for name in names if name in pieces), None)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f".{suffix}" for suffix, _ in counts.most_common(5)) or "files without suffix"
