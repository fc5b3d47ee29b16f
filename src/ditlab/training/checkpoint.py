"""Checkpoints: a folder that is either whole or not there, of safetensors and JSON, with a manifest of its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditlab.errors import InputError
from ditlab.training.loop import TrainState

LATEST = "LATEST"
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


def step_name(step: int) -> str:
    """The name of a step in a run folder: "step-00002000"."""
    return f"step-{step:08d}"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then move it there; on failure nothing is left over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, as readable as any other; a full disk raises ``OSError`` like anywhere else."""
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
        path.chmod(mode)  # the library replaces the file by one for its owner alone
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def save_checkpoint(folder: Path, state: TrainState) -> Path:
    """Write ``folder/step-00002000`` and point ``folder/LATEST`` at it.

    The files go into a temporary folder, are flushed to disk and renamed as one: a checkpoint under its name is whole.
    """
    model, ema = state.network.state_dict(), state.ema.network.state_dict()
    return write_checkpoint(folder, state.step, model, ema, state.optimizers.state_dict(), state.facts())


def write_checkpoint(
    folder: Path,
    step: int,
    model: dict[str, Tensor],
    ema: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    facts: dict[str, Any] | None = None,
) -> Path:
    """``save_checkpoint`` of these tensors: weights, averaged weights, what the optimizer remembers; and of facts."""
    target = folder / step_name(step)
    if not target.exists():
        temporary = folder / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _write_files(
                temporary, {"step": step} | (facts or {}), {"model": model, "ema": ema, "optimizer": optimizer}
            )
            temporary.replace(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(folder)
    write_atomically(folder / LATEST, lambda path: path.write_text(target.name + "\n"))
    return target


def _write_files(folder: Path, facts: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> None:
    for name, tensors in parts.items():
        if name == "ema" and tensors is parts["model"]:
            _link(folder / "model.safetensors", folder / "ema.safetensors")
        else:
            save_tensors(folder / f"{name}.safetensors", tensors)
    (folder / "state.json").write_text(json.dumps(facts | {"torch": torch.__version__}))
    files = [folder / name for name in FILES]
    manifest = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for file in (*files, folder / MANIFEST, folder):
        _flush(file)


def latest_step(folder: Path) -> int | None:
    """The step that ``LATEST`` names; where it names none that is there, the newest checkpoint's; or None."""
    there = saved_steps(folder)
    with contextlib.suppress(OSError, ValueError):
        named = int((folder / LATEST).read_text().strip().removeprefix("step-"))
        if named in there:
            return named
    return max(there, default=None)


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d{8}", name))


def verified(folder: Path, step: int) -> Path:
    """The folder of that step's checkpoint, after comparing each of its files with the manifest.

    Raises:
        InputError: no such checkpoint, or a file that is missing or has changed, by name.
    """
    checkpoint = folder / step_name(step)
    if not checkpoint.is_dir():
        raise InputError(f"no checkpoint of step {step} in {folder}; there are {saved_steps(folder)}")
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
        for name in FILES:
            file, expected = checkpoint / name, manifest[name]
            if file.stat().st_size != expected["size"] or _sha256(file) != expected["sha256"]:
                raise InputError(f"{file} is damaged: its content is not what was saved; use an older checkpoint")
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing from its checkpoint; use an older checkpoint") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"{checkpoint / MANIFEST} is damaged; use an older checkpoint") from None
    return checkpoint


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a network's weights, all of them or none.

    Raises:
        InputError: the weights do not fit the network; the differences are listed.
    """
    tensors, own = load_file(file), network.state_dict()
    missing = [f"missing {name}" for name in own.keys() - tensors.keys()]
    extra = [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if problems := sorted([*missing, *extra, *shapes]):
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{file} does not fit the configuration: {'; '.join(problems[:5])}{more}")
    network.load_state_dict(tensors)


def load_checkpoint(folder: Path, state: TrainState, step: int) -> None:
    """Bring ``state`` to where it was when that step was saved."""
    checkpoint = verified(folder, step)
    load_weights(state.network, checkpoint / "model.safetensors")
    load_weights(state.ema.network, checkpoint / "ema.safetensors")
    state.optimizers.load_state_dict(load_file(checkpoint / "optimizer.safetensors"))
    state.take_facts(json.loads((checkpoint / "state.json").read_text()))


def _link(file: Path, other: Path) -> None:
    """The same content under another name, once on the disk where the file system can."""
    try:
        other.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, other)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
