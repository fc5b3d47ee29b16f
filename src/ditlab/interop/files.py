"""Reading other people's files: tensors come out of them, and nothing else; no code in them ever runs."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditlab.errors import InputError


class _Forgotten:
    """Stands in for ``argparse.Namespace``, which training checkpoints carry as "args": whatever it held is dropped."""

    __slots__ = ()

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_torch(path: Path) -> Any:
    """What a file of ``torch.save`` holds, by the weights-only reader alone: a pickle that asks for more is refused.

    Tensors stay in the file until they are used, where its format allows.

    Raises:
        InputError: a folder, a damaged file, something else, or a pickle that would run code.
    """
    _must_be_file(path)
    zipped = _is_zip(path)
    try:
        with torch.serialization.safe_globals([(_Forgotten, "argparse.Namespace")]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a hostile file can fail in any way
        raise InputError(_why_not(path, error)) from None


def _why_not(path: Path, error: Exception) -> str:
    wanted = re.search(r"GLOBAL ([A-Za-z_][\w.]*)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted is not None:
        return (
            f"{path} is refused: loading it would call {wanted[1][:80]}, and a checkpoint needs nothing but tensors; "
            f"save its state dict alone, torch.save(model.state_dict(), ...)"
        )
    return f"{path} is no checkpoint of tensors: it is damaged, cut short or of another kind"


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: a folder, or a damaged file.
    """
    _must_be_file(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file: {str(error)[:120]}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: there is none, or something else.
    """
    _must_be_file(path)
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


def read_model_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model that diffusers saved as safetensors, in one file or in parts with an index.

    Raises:
        InputError: no such files, or a damaged one.
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
    if not isinstance(parts, dict) or any(str(part) != Path(str(part)).name for part in parts.values()):
        raise InputError(f"{index} names no files beside it")
    tensors: dict[str, Tensor] = {}
    for part in sorted({str(part) for part in parts.values()}):
        tensors |= read_safetensors(folder / part)
    return tensors


def as_weights(value: object, source: Path, file_size: int) -> dict[str, Tensor]:
    """A state dict as dense fp32 tensors.

    Raises:
        InputError: no state dict, a tensor that is none of numbers, larger than its file, or not finite.
    """
    if not isinstance(value, dict) or not value:
        raise InputError(f"{source} holds no state dict, which is a dictionary of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{source} holds no state dict: {str(name)[:60]!r} is no tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point():
            raise InputError(f"{source}: {name[:80]} is {tensor.dtype}, {tensor.layout}, not dense floats")
        if tensor.numel() * tensor.element_size() > file_size:
            raise InputError(f"{source}: {name[:80]} claims more numbers than the file holds")
    weights = {name: tensor.detach().float() for name, tensor in value.items()}
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise InputError(f"{source} holds NaN or infinite weights: {shortened(bad)}")
    return weights


def shortened(problems: list[str]) -> str:
    """At most five of them in one line."""
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problem[:120] for problem in problems[:5]) + more


def _must_be_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is expected here")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
