"""Read files from others safely: only tensors are taken from them, and no code in them ever runs."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditlab.core.disk import must_be_file, read_json
from ditlab.core.errors import InputError

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
SAFETENSORS_KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MOST_UNPACKED = 16  # unpacked size over file size; weights hardly compress


class _Forgotten:
    """Stands in for the ``argparse.Namespace`` that training checkpoints keep as "args", and drops all but num_classes.

    The tensors do not tell how many rows of the label table are classes.
    """

    __slots__ = ("num_classes",)

    def __init__(self, *_: object) -> None:
        self.num_classes: object = None

    def __setstate__(self, state: object) -> None:
        self.num_classes = dict.get(state, "num_classes") if isinstance(state, dict) else None


def read_torch(path: Path) -> Any:
    """Read a file of ``torch.save`` with the weights-only reader, memory-mapped if its format allows.

    Raises:
        InputError: not a checkpoint of tensors, damaged, or a pickle that would run code.
    """
    must_be_file(path)
    held, sizes = unpacked_size(path), _stored_sizes(path)
    if held > MOST_UNPACKED * path.stat().st_size:
        raise InputError(f"{path} is not a checkpoint: {path.stat().st_size} bytes unpack to {held}")
    try:
        if sizes is not None:
            content, storages = _load(path, mmap=True)
            if [size for _, size in sorted(storages)] == sizes:
                return content
        return _load(path, mmap=False)[0]  # slower, but checks the size of each record
    except Exception as error:  # a hostile file can fail in any way
        raise InputError(_why_not(path, error)) from None


def unpacked_size(path: Path) -> int:
    """Size of a file in bytes, with the records of a ZIP archive unpacked."""
    return max(path.stat().st_size, sum(record.file_size for record in _records(path)))


def _records(path: Path) -> list[zipfile.ZipInfo]:
    """The records of a ZIP archive, in the order in the file; none of any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.infolist(), key=lambda record: record.header_offset)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error):
        return []


def _stored_sizes(path: Path) -> list[int] | None:
    """Sizes of the tensors' records in the order in the file; None if they cannot be memory-mapped.

    torch maps a record as it is in the file, even if compressed, without checking its size.
    """
    records = _records(path)
    if any(r.compress_type != zipfile.ZIP_STORED or r.compress_size != r.file_size for r in records):
        return None
    name = re.compile(r"[^/]+/data/[^/]+")
    return [record.file_size for record in records if name.fullmatch(record.filename) and record.file_size] or None


def _load(path: Path, mmap: bool) -> tuple[Any, list[tuple[int, int]]]:
    """The content of a file, and address and size of each storage in it."""
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
            f"{path} is refused: loading it would call {wanted[1][:80]}, but a checkpoint only needs tensors; "
            f"save its state dict alone, torch.save(model.state_dict(), ...)"
        )
    return f"{path} is not a checkpoint of tensors: it is damaged, truncated or another kind of file"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: not a safetensors file, damaged, or tensors that are not floating-point.
    """
    must_be_file(path)
    path.open("rb").close()  # raises an error that names the file, which the library's does not
    try:
        with safe_open(path, framework="pt") as content:
            kinds = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118 - no mapping
            if other := [f"{name} is {kind}" for name, kind in kinds.items() if kind not in SAFETENSORS_KINDS]:
                raise InputError(f"{path}: {shortened(other)}; it must be one of {', '.join(SAFETENSORS_KINDS)}")
            return {name: content.get_tensor(name) for name in kinds}
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {str(error)[:120]}") from None


def read_model_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a diffusers model: one safetensors file, or several with an index.

    Raises:
        InputError: files are missing or damaged, or hold other tensors than the index lists.
    """
    name = "diffusion_pytorch_model.safetensors"
    whole, index = folder / name, folder / f"{name}.index.json"
    if whole.exists():
        return read_safetensors(whole)
    if not index.exists():
        reason = (
            "its weights are a pickle (.bin), and only safetensors are read: load it with diffusers and "
            "save_pretrained(..., safe_serialization=True)"
            if any(folder.glob("diffusion_pytorch_model*.bin"))
            else f"there is no {name} in it"
        )
        raise InputError(f"{folder}: {reason}")
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(_is_file_name(part) for part in parts.values()):
        raise InputError(f"{index} does not name files beside it")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        found = read_safetensors(folder / part)
        if other := sorted(found.keys() ^ {name for name, place in parts.items() if place == part}):
            raise InputError(f"{folder / part} does not hold the tensors that {index.name} lists: {shortened(other)}")
        tensors |= found
    return tensors


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {"/", "\\", "\0"}


def named_tensors(value: object, source: Path) -> dict[str, Tensor]:
    """A state dict of any dictionary type as a plain dictionary.

    Raises:
        InputError: not a state dict.
    """
    if not isinstance(value, dict) or not value:
        raise InputError(f"{source} holds no state dict, which is a dictionary of tensors")
    content = dict(dict.items(value))  # its own methods may be malicious
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{source} holds no state dict: {str(name)[:60]!r} is not a tensor")
    return content


def as_weights(tensors: dict[str, Tensor], source: Path, held: int) -> dict[str, Tensor]:
    """Convert tensors to dense fp32, after checking their types and total size.

    Args:
        tensors: tensors of the file.
        source: the file.
        held: size of the unpacked file in bytes.

    Raises:
        InputError: a tensor is not dense floats, is larger than the file, or holds NaN or infinity.
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
    """At most five problems in one line."""
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problem[:120] for problem in problems[:5]) + more


def shown(value: object) -> str:
    """The repr of a value, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


Count = Annotated[int, Field(ge=1, le=2**20)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseModel):
    """Settings of a JSON file, of which only the declared ones are read."""

    model_config = ConfigDict(strict=True, frozen=True)


Read = TypeVar("Read", bound=Settings)


def validated(kind: type[Read], given: Mapping[str, Any], file: Path) -> Read:
    """The settings of a file.

    Raises:
        InputError: one is missing or invalid.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise InputError(f"{file} has no {name}") from None
        raise InputError(f"{file}: {name}={shown(given[name])}; {first['msg'][:200]}") from None
