"""metrics.jsonl: one JSON object a line, added at the end, and read line by line from either end.

A run's metrics may have millions of lines, or come from somebody else: none of this holds the whole file in memory, and
a line that no training can have written is treated as damaged.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ditlab.core import disk
from ditlab.core.errors import DamagedMetrics, InputError

LONGEST = 2**20  # bytes of a line
BLOCK = 2**16  # bytes that are read at a time from the end
KNOWN_AGAIN = 256  # bytes at the end of what was read of a file, by which it is known again
LAST_STEP = 10**8 - 1  # that has a name
GREATEST = 3.4028234663852886e38  # of float32, in which a training computes
LEAST = dict.fromkeys(("loss", "lr", "grad_norm", "effective_depth"), -GREATEST) | {"seconds": 0, "images_per_s": 0}


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not valid JSON")


_decode = json.JSONDecoder(parse_constant=_no_number).decode


def parse(text: bytes) -> dict[str, Any] | None:
    """A line of metrics, or None if it is damaged: no object with a step and seconds, or a figure without a value."""
    try:
        line: dict[str, Any] = _decode(text.decode())
        if type(line["step"]) is not int or not 0 <= line["step"] <= LAST_STEP or "seconds" not in line:
            return None
        for name, least in LEAST.items():
            if name in line and not _number(line[name], least):
                return None
        if not isinstance(line.get("skipped", ""), str) or ("gates" in line and not _gates(line["gates"])):
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return line


def _number(value: Any, least: float) -> bool:
    return type(value) in (int, float) and least <= value <= GREATEST


def _gates(value: Any) -> bool:
    """Whether it gives a number for the attention and the MLP of each block."""
    attn, mlp = value["attn"], value["mlp"]
    return 0 < len(attn) == len(mlp) and all(_number(gate, -GREATEST) for gate in [*attn, *mlp])


def there(file: Path) -> bool:
    """Whether a run has metrics; a link is not followed, and nothing is waited for.

    Raises:
        InputError: something else than a file bears the name.
    """
    if not os.path.lexists(file):
        return False
    disk.must_be_file(file, file.parent)
    return True


def read(file: Path, *, whole: bool = False) -> Iterator[dict[str, Any]]:
    """The lines from the first one on; what a crash has damaged at the end is left out.

    Args:
        file: of the metrics.
        whole: that nothing may be damaged but a last line that was not finished.

    Raises:
        InputError: a line before good ones is damaged, or any where the ``whole`` is wanted, or it is no file.
    """
    if not there(file):
        return
    damaged, broken = 0, 0
    with file.open("rb", buffering=LONGEST) as stream:
        for number, text in enumerate(_texts(stream), 1):
            line = parse(text) if text.endswith(b"\n") else None
            if line is None:
                damaged = damaged or number
                if text.endswith(b"\n") or not text.startswith(b"{"):
                    broken = broken or number
            elif damaged:
                raise InputError(f"{file}, line {damaged}, is damaged: delete that line")
            else:
                yield line
    if whole and broken:
        raise InputError(f"{file}, line {broken}, is damaged: delete that line")


def newest(file: Path) -> Iterator[dict[str, Any]]:
    """The lines from the last one back, without damaged ones; who stops early reads no more of the file.

    Raises:
        InputError: it is no file.
    """
    if there(file):
        with file.open("rb") as stream:
            for _, text in _backwards(stream):
                if text.endswith(b"\n") and (line := parse(text)) is not None:
                    yield line


def skipped(file: Path) -> list[str]:
    """Why steps were not learned from, one reason for each; damaged lines are left out."""
    if not there(file):
        return []
    with file.open("rb", buffering=LONGEST) as stream:
        lines = [parse(text) for text in _texts(stream) if b'"skipped"' in text]
    return [line["skipped"] for line in lines if line is not None and "skipped" in line]


def append(file: Path, line: dict[str, Any]) -> None:
    """Add a line.

    Raises:
        InputError: it is no file.
    """
    there(file)
    disk.before("append", file)
    with file.open("a") as stream:
        whole = stream.tell()
        try:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
            stream.flush()
        except OSError:
            os.truncate(file, whole)
            raise


def cut(file: Path, step: int) -> None:
    """Drop the lines of later steps than ``step``, and what is damaged at the end; make the file if there is none.

    The file is read from its end, and shortened in place. Damaged lines, other than one that was not finished, are kept
    in ``damaged-metrics.jsonl``; a ``DamagedMetrics`` warning says so.

    Raises:
        InputError: it is no file.
    """
    if not there(file):
        file.touch()
        return
    with file.open("rb") as stream:
        keep, damaged = 0, False
        for begin, text in _backwards(stream):
            line, ended = parse(text), text.endswith(b"\n")
            if ended and line is not None and line["step"] <= step:
                keep = begin + len(text)
                break
            damaged |= line is None and (ended or not text.startswith(b"{"))
        whole = keep == stream.seek(0, os.SEEK_END)
        if damaged:
            aside = file.with_name(f"damaged-{file.name}")
            stream.seek(keep)
            disk.remove(aside)
            disk.write(aside, lambda path: _copy(stream, path))
            warnings.warn(f"lines of {file} are damaged: they are kept in {aside}", DamagedMetrics, 2)
    if not whole:
        if file.stat().st_nlink > 1:  # another name of the same file, such as a backup's, keeps all of it
            disk.write_atomically(file, partial(shutil.copyfile, file))
        disk.before("delete", file)
        os.truncate(file, keep)


def _copy(stream: BinaryIO, path: Path) -> None:
    with path.open("wb") as copy:
        shutil.copyfileobj(stream, copy)


def _texts(stream: BinaryIO) -> Iterator[bytes]:
    """The lines that follow, each with its end; one that is too long comes in pieces."""
    return iter(partial(stream.readline, LONGEST), b"")


def _backwards(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line, the last one first; one that is too long comes in pieces."""
    begin, rest = stream.seek(0, os.SEEK_END), b""
    while begin:
        size = min(BLOCK, begin)
        begin -= size
        stream.seek(begin)
        rest = stream.read(size) + rest
        stop = len(rest)
        while (end := rest.rfind(b"\n", 0, stop - 1)) >= 0:
            yield begin + end + 1, rest[end + 1 : stop]
            stop = end + 1
        rest = rest[:stop]
        if len(rest) > LONGEST:
            yield begin, rest
            rest = b""
    if rest:
        yield 0, rest


class Growing:
    """What is added to a file of metrics, look by look; damaged lines are left out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._read, self._end = 0, b""  # how many bytes were read, and what the last of them were

    def pass_over(self, step: int) -> None:
        """Begin with the last loss up to that step: nothing before it is read."""
        self.forget()
        with self._file.open("rb") as stream:
            for begin, text in _backwards(stream):
                line = parse(text)
                if line is not None and line["step"] <= step and "loss" in line:
                    self._read = begin
                    return

    def added(self) -> Iterator[dict[str, Any]] | None:
        """Whole lines from where reading stopped; None if what was read is no longer there.

        Lines hold seconds of training, so that another file, also one that took this one's inode and has gone further,
        has others where reading stopped.

        Raises:
            InputError: it is no file.
            FileNotFoundError: there is none.
        """
        there(self._file)
        with self._file.open("rb") as stream:
            stream.seek(self._read - len(self._end))
            known = stream.read(len(self._end)) == self._end
        return self._lines() if known else None

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self._file.open("rb", buffering=LONGEST) as stream:
            stream.seek(self._read)
            for text in _texts(stream):
                if not text.endswith(b"\n") and len(text) < LONGEST:
                    return
                self._read += len(text)
                self._end = (self._end + text)[-KNOWN_AGAIN:]
                if (line := parse(text)) is not None:
                    yield line
