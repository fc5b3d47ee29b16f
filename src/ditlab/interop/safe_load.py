"""Reading other people's files: tensors come out of them, and nothing else; no code in them ever runs."""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditlab.core.disk import must_be_file, read_json
from ditlab.core.errors import InputError

KINDS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SAFETENSORS_KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MOST_UNPACKED = 16  # times its size; weights hardly shrink


class _Forgotten:
    """Stands in for ``argparse.Namespace``, which training checkpoints carry as "args": all but one number is dropped.

    What the tensors of a label table do not tell is how many of its rows are classes.
    """

    __slots__ = ("num_classes",)

    def __init__(self, *_: object) -> None:
        self.num_classes: object = None

    def __setstate__(self, state: object) -> None:
        self.num_classes = dict.get(state, "num_classes") if isinstance(state, dict) else None


def read_torch(path: Path) -> Any:
    """What a file of ``torch.save`` holds, by the weights-only reader alone: a pickle that asks for more is refused.

    Tensors stay in the file until they are used, where its format allows.

    Raises:
        InputError: a folder, a damaged file, something else, or a pickle that would run code.
    """
    must_be_file(path)
    held, sizes = unpacked_size(path), _stored_sizes(path)
    if held > MOST_UNPACKED * path.stat().st_size:
        raise InputError(f"{path} is no checkpoint: {path.stat().st_size} bytes unpack to {held}")
    try:
        if sizes is not None:
            content, storages = _load(path, mmap=True)
            if [size for _, size in sorted(storages)] == sizes:
                return content
        return _load(path, mmap=False)[0]  # slower, and each record is compared with the size it should have
    except Exception as error:  # a hostile file can fail in any way
        raise InputError(_why_not(path, error)) from None


def unpacked_size(path: Path) -> int:
    """How many bytes a file holds once its records are unpacked, if it is a ZIP archive."""
    return max(path.stat().st_size, sum(record.file_size for record in _records(path)))


def _records(path: Path) -> list[zipfile.ZipInfo]:
    """What a ZIP archive says it holds, in the order in the file; nothing of another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.infolist(), key=lambda record: record.header_offset)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error):
        return []


def _stored_sizes(path: Path) -> list[int] | None:
    """Sizes of the tensors' records in the order in the file; None where it cannot be mapped into memory.

    torch maps a record as it lies in the file, even a compressed one, and asks nothing about its size.
    """
    records = _records(path)
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size for record in records
    ):
        return None
    name = re.compile(r"[^/]+/data/[^/]+")
    return [record.file_size for record in records if name.fullmatch(record.filename) and record.file_size] or None


def _load(path: Path, mmap: bool) -> tuple[Any, list[tuple[int, int]]]:
    """What a file holds, and the address and the size of each storage that was taken from it."""
    storages: list[tuple[int, int]] = []

    def on_cpu(storage: Any, _: str) -> Any:
        if storage.nbytes():
            storages.append((storage.data_ptr(), storage.nbytes()))
        return storage

    with torch.serialization.safe_globals([(_Forgotten, "argparse.Namespace")]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location=on_cpu, weights_only=True, mmap=mmap), storages


def _why_not(path: Path, error: Exception) -> str:
    wanted = re.search(r"GLOBAL ([A-Za-z_][\w.]*)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted is not None:
        return (
            f"{path} is refused: loading it would call {wanted[1][:80]}, and a checkpoint needs nothing but tensors; "
            f"save its state dict alone, torch.save(model.state_dict(), ...)"
        )
    return f"{path} is no checkpoint of tensors: it is damaged, cut short or of another kind"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: a folder, a damaged file, or tensors that are no floating-point numbers.
    """
    must_be_file(path)
    path.open("rb").close()  # without permission this names the file, and the library does not
    try:
        with safe_open(path, framework="pt") as content:
            kinds = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118 - no mapping
            if other := [f"{name} is {kind}" for name, kind in kinds.items() if kind not in SAFETENSORS_KINDS]:
                raise InputError(f"{path}: {shortened(other)}; it must be one of {', '.join(SAFETENSORS_KINDS)}")
            return {name: content.get_tensor(name) for name in kinds}
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file: {str(error)[:120]}") from None


def read_model_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model that diffusers saved as safetensors, in one file or in parts with an index.

    Raises:
        InputError: no such files, a damaged one, or one that holds other tensors than the index says.
    """
    name = "diffusion_pytorch_model.safetensors"
    whole, index = folder / name, folder / f"{name}.index.json"
    if whole.exists():
        return read_safetensors(whole)
    if not index.exists():
        reason = (
            "its weights are a pickle (.bin), and of diffusers only safetensors are read: load it with diffusers and "
            "save_pretrained(..., safe_serialization=True)"
            if any(folder.glob("diffusion_pytorch_model*.bin"))
            else f"there is no {name} in it"
        )
        raise InputError(f"{folder}: {reason}")
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(_is_file_name(part) for part in parts.values()):
        raise InputError(f"{index} names no files beside it")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        found = read_safetensors(folder / part)
        if other := sorted(found.keys() ^ {name for name, place in parts.items() if place == part}):
            raise InputError(f"{folder / part} does not hold what {index.name} says of it: {shortened(other)}")
        tensors |= found
    return tensors


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {"/", "\\", "\0"}


def named_tensors(value: object, source: Path) -> dict[str, Tensor]:
    """A state dict as a plain dictionary, whatever kind of dictionary it was.

    Raises:
        InputError: no state dict.
    """
    if not isinstance(value, dict) or not value:
        raise InputError(f"{source} holds no state dict, which is a dictionary of tensors")
    content = dict(dict.items(value))  # its own methods may have been replaced
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{source} holds no state dict: {str(name)[:60]!r} is no tensor")
    return content


def as_weights(tensors: dict[str, Tensor], source: Path, held: int) -> dict[str, Tensor]:
    """Tensors as dense fp32 ones, converted only when all that can be told from their shapes is right.

    Args:
        tensors: from the file.
        source: the file.
        held: bytes in the file, unpacked.

    Raises:
        InputError: a tensor that is none of numbers, more numbers than the file holds, or numbers that are not finite.
    """
    claimed = 0
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized)
        if not dense or tensor.dtype not in KINDS or tensor.device.type != "cpu":
            kind = "nested" if tensor.is_nested else f"{tensor.layout}, on {tensor.device.type}"
            raise InputError(f"{source}: {name[:80]} is {tensor.dtype}, {kind}, not dense floats")
        claimed += tensor.numel() * tensor.element_size()
        if claimed > held:
            raise InputError(f"{source} claims more numbers than the file holds, up to {name[:80]}")
    weights = {name: tensor.detach().float() for name, tensor in tensors.items()}
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise InputError(f"{source} holds NaN or infinite weights: {shortened(bad)}")
    return weights


def shortened(problems: list[str]) -> str:
    """At most five of them in one line."""
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problem[:120] for problem in problems[:5]) + more


def shown(value: object) -> str:
    """A value as one would write it, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def class_name(given: Mapping[str, Any], file: Path) -> str:
    """What a configuration says that it describes, cut after 60 characters.

    Raises:
        InputError: it does not say.
    """
    if "_class_name" not in given:
        raise InputError(f"{file} has no _class_name, which says what it describes")
    return str(given["_class_name"])[:60]


def number(given: Mapping[str, Any], name: str, file: Path) -> float:
    """A finite number.

    Raises:
        InputError: something else.
    """
    value = given[name]
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise InputError(f"{file}: {name}={shown(value)} is no number")


def whole(given: Mapping[str, Any], name: str, file: Path, low: int, high: int) -> int:
    """A whole number between two, both included.

    Raises:
        InputError: something else.
    """
    value = given[name]
    if type(value) is int and low <= value <= high:
        return value
    raise InputError(f"{file}: {name}={shown(value)} is not between {low} and {high}")


def choice(given: Mapping[str, Any], name: str, file: Path, known: Iterable[str]) -> str:
    """One of the names that are known.

    Raises:
        InputError: something else.
    """
    value, names = given[name], list(known)
    if isinstance(value, str) and value in names:
        return value
    raise InputError(f"{file}: {name}={shown(value)} is none of {', '.join(names)}")
