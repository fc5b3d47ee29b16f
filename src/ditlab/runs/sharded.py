"""Tensors of which each process has a share, on the disk: safetensors files that torch's distributed checkpoints write.

Its default storage is a pickle; this one is not. A folder holds a file of each process that had something to save, and
is read by any number of them. Torch's reader takes every file of a folder and fills what these happen to hold; the one
here takes the files that it is told, and no tensor that they do not make up exactly.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ditlab.core.distributed import own, own_rows

OFFSETS = "DCP_SHARDING_INFO"  # what a file's header says of where its pieces belong

logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a folder that is there; each process its share of them, in the order of their names.

    Raises:
        OSError: one of the processes could not.
    """
    if not tensors:
        return
    from torch.distributed.checkpoint.api import CheckpointException  # it takes half a second to import
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    ordered = dict(sorted(tensors.items()))  # a state that was loaded has them in another order
    try:
        save_distributed(ordered, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # which is not even an ``Exception``: what it was at first
        causes = [failure[0] for failure in error.failures.values()]
        for cause in causes:
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(cause.filename or folder)) from None
        raise RuntimeError(f"{folder}: {causes[0] if causes else error}") from None


def settle(file: Path) -> None:
    """Put in order what the library says of itself in the header of a file, where it comes in any order.

    So the same tensors are the same bytes. The header stays as long as it was.
    """
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(ordered) != size:
            raise RuntimeError(f"the header of {file} cannot be written as it was read")
        stream.seek(8)
        stream.write(ordered)


class Piece(NamedTuple):
    """Rows of a tensor that a file holds: all of it, from ``first`` on, along the first dimension."""

    file: Path
    first: int
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """A tensor in files: one on the "meta" device of its shape and type, and the pieces that make it up."""

    like: Tensor
    pieces: list[Piece]


def described(files: Sequence[Path]) -> dict[str, Entry]:
    """The tensors of a part by its files' headers, once their pieces are seen to cover each element exactly once.

    Raises:
        ValueError: they leave a gap, overlap, or do not go together; what it is about is named.
        OSError, SafetensorError, KeyError, TypeError: a header says nothing of the kind.
    """
    pieces: dict[str, list[Piece]] = {}
    types: dict[str, set[torch.dtype]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            told = json.loads((opened.metadata() or {}).get(OFFSETS, "{}"))
            for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                view = opened.get_slice(name)
                shape = tuple(view.get_shape())
                offsets = told[name]["saved_offsets"] if told else [0] * len(shape)
                if len(offsets) != len(shape) or any(offsets[1:]):
                    raise ValueError(f"{file.name} holds a piece of {name} at {offsets}, which are not its rows")
                pieces.setdefault(name, []).append(Piece(file, offsets[0] if shape else 0, shape))
                types.setdefault(name, set()).add((view[:0] if shape else opened.get_tensor(name)).dtype)
    return {name: Entry(_whole(name, found, types[name]), found) for name, found in pieces.items()}


def _whole(name: str, pieces: list[Piece], types: set[torch.dtype]) -> Tensor:
    """What pieces make up, on the "meta" device.

    Raises:
        ValueError: they do not cover each element exactly once.
    """
    shape = pieces[0].shape
    if len(types) > 1 or any(piece.shape[1:] != shape[1:] for piece in pieces):
        raise ValueError(f"the pieces of {name} differ in shape or type")
    end = 0
    for piece in sorted((piece for piece in pieces if math.prod(piece.shape)), key=lambda piece: piece.first):
        if piece.first != end:
            raise ValueError(f"{name} {'is there twice' if piece.first < end else 'lacks elements'} from row {end} on")
        end += piece.shape[0] if shape else 1
    return torch.empty((end, *shape[1:]) if shape else (), dtype=types.pop(), device="meta")


def load(files: Sequence[Path], targets: Mapping[str, Tensor]) -> None:
    """Fill tensors from the files of a part; those of which this process has a share with its share.

    Raises:
        ValueError, OSError, SafetensorError, KeyError, TypeError: as ``described``, or a tensor is not there.
    """
    _load(described(files), targets)


def read(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of a part, whole.

    Raises:
        ValueError, OSError, SafetensorError, KeyError, TypeError: as ``described``.
    """
    entries = described(files)
    tensors = {name: torch.empty_like(entry.like, device="cpu") for name, entry in entries.items()}
    _load(entries, tensors)
    return tensors


def _load(entries: Mapping[str, Entry], targets: Mapping[str, Tensor]) -> None:
    """Fill tensors file by file."""
    wanted: dict[Path, list[tuple[str, Piece]]] = {}
    for name in targets:
        for piece in entries[name].pieces:
            wanted.setdefault(piece.file, []).append((name, piece))
    for file, found in wanted.items():
        with safe_open(file, framework="pt") as opened:
            for name, piece in found:
                _fill(targets[name], piece, opened, name)


@torch.no_grad()
def _fill(target: Tensor, piece: Piece, opened: Any, name: str) -> None:
    """Copy what a piece has of a tensor, or of this process's share of it."""
    if not piece.shape:
        own(target).copy_(opened.get_tensor(name))
        return
    begin, rows = own_rows(target)
    first, last = max(begin, piece.first), min(begin + rows, piece.first + piece.shape[0])
    if first < last:
        own(target)[first - begin : last - begin].copy_(
            opened.get_slice(name)[first - piece.first : last - piece.first]
        )
