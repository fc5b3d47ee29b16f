"""Tensors of which each process has a share, on the disk: safetensors files, through torch's distributed checkpoints.

Its default storage is a pickle; this one is not. A folder holds a file of each process that had something to save, and
is read by any number of them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)


def save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a folder that is there; each process its share of them, in the order of their names.

    Raises:
        OSError: one of the processes could not.
    """
    if tensors:
        with _plain_errors(folder):
            ordered = dict(sorted(tensors.items()))  # a state that was loaded has them in another order
            save_distributed(ordered, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


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


def described(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder without their numbers: shapes and types alone."""
    with _plain_errors(folder):
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors from a folder; those of which this process has a share with its share."""
    if targets:
        with _plain_errors(folder):
            alone = not dist.is_initialized()
            load_distributed(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole."""
    tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in described(folder).items()}
    with _plain_errors(folder):
        load_distributed(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    """What torch raises as a kind of its own, which is not even an ``Exception``, as what it was at first."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process is meant
            yield
    except CheckpointException as error:
        causes = [failure[0] for failure in error.failures.values()]
        for cause in causes:
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(cause.filename or folder)) from None
        raise RuntimeError(f"{folder}: {causes[0] if causes else error}") from None
