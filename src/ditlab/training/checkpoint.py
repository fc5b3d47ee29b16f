"""Checkpoints: a folder that is either whole or not there, of safetensors and JSON, with a manifest of its files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditlab import disk
from ditlab.config import Config
from ditlab.errors import CheckpointWarning, DamagedCheckpoint, InputError
from ditlab.training.averages import tensor_name
from ditlab.training.loop import TrainState, differences

LATEST = "LATEST"
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")  # of every checkpoint
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)  # errors of a file that damage explains
T = TypeVar("T")


def step_name(step: int) -> str:
    """The name of a step in a run folder: "step-00002000"."""
    return f"step-{step:08d}"


# ---- writing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, as readable as any other; a full disk raises ``OSError`` like anywhere else."""
    try:
        path.touch()
        mode = path.stat().st_mode
        contents = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(contents, path, None if metadata is None else dict(metadata))
        path.chmod(mode)  # the library replaces the file by one for its owner alone
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_checkpoint(
    folder: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any] | None = None,
    written: Callable[[], None] = lambda: None,
) -> Path:
    """Write ``folder/step-00002000`` and point ``folder/LATEST`` at it.

    The files go into a temporary folder, are flushed to disk and renamed as one: a checkpoint under its name is whole.

    Args:
        folder: of all checkpoints of a run.
        step: whose checkpoint.
        parts: tensors by file: "model" (weights), "ema" (averaged weights), "optimizer" (what it remembers), and more.
        facts: what ``state.json`` says beside the step: plain numbers and text.
        written: is called after each file.
    """
    target = folder / step_name(step)

    def fill(temporary: Path) -> None:
        for name, tensors in parts.items():
            file = temporary / f"{name}.safetensors"
            if name == "ema" and tensors is parts["model"]:
                disk.write(file, lambda path: _link(temporary / "model.safetensors", path))
            else:
                disk.write(file, partial(save_tensors, tensors=tensors))
            written()
        told = json.dumps({**(facts or {}), "step": step, "torch": torch.__version__}, allow_nan=False)
        disk.write(temporary / "state.json", lambda path: path.write_text(told))
        files = [*(temporary / f"{name}.safetensors" for name in parts), temporary / "state.json"]
        manifest = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files}
        disk.write(temporary / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))

    if not target.exists():
        disk.write_folder(target, fill)
    point(folder, step)
    return target


def point(folder: Path, step: int) -> None:
    """Make ``LATEST`` name that step."""
    disk.write_atomically(folder / LATEST, lambda path: path.write_text(step_name(step) + "\n"))


def thin_out(folder: Path, keep_last: int | None, keep_every: int | None) -> None:
    """Delete all checkpoints but the newest ``keep_last`` (None: all) and those of every ``keep_every`` steps."""
    if keep_last is None:
        return
    for step in saved_steps(folder)[:-keep_last]:
        if keep_every is None or step % keep_every:
            disk.remove(folder / step_name(step))


def _link(file: Path, other: Path) -> None:
    """The same content under another name, once on the disk where the file system can."""
    try:
        other.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, other)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- finding


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-[0-9]{8}", name))


def latest_step(folder: Path) -> int | None:
    """The step that ``LATEST`` names; where it names none that is there, the newest checkpoint's; or None."""
    there, named = saved_steps(folder), _named(folder)
    return named if named in there else max(there, default=None)


def _named(folder: Path) -> int | None:
    """The step that ``LATEST`` names, there or not."""
    with suppress(OSError, ValueError):
        with (folder / LATEST).open() as stream:
            text = stream.read(100).strip()
        if re.fullmatch(r"step-[0-9]{8}", text):
            return int(text.removeprefix("step-"))
    return None


def newest_whole(folder: Path, look: Callable[[int], T], *, as_named: bool = True) -> T | None:
    """What ``look`` makes of the newest checkpoint that it does not find damaged; None if there is no checkpoint.

    A ``CheckpointWarning`` says what was passed over, and why.

    Args:
        folder: of the checkpoints.
        look: takes a step, and raises ``DamagedCheckpoint`` if that one cannot be used.
        as_named: begin with the one that ``LATEST`` names, go on with older ones and only then with newer ones.
            Otherwise begin with the newest, which a kill before ``LATEST`` was moved may have left.

    Raises:
        InputError: every checkpoint is damaged; the reasons are given.
    """
    reasons: dict[int, str] = {}
    while True:  # the folder is read anew each time: whoever trains there may add and delete meanwhile
        there, named = _listed(folder)
        if there and named is not None and named not in there:
            reasons[named] = f"{folder / LATEST} names {step_name(named)}, which is not there"
        left = [step for step in there if step not in reasons]
        if not left:
            break
        step = max(left, key=lambda step: (not as_named or named not in there or step <= named, step))
        try:
            found = look(step)
        except InputError as error:
            if not (folder / step_name(step)).exists():  # deleted while it was read: there is a newer one
                continue
            if not isinstance(error, DamagedCheckpoint):
                raise
            reasons[step] = error.reason
        else:
            if reasons:
                warnings.warn(f"{'; '.join(reasons.values())}: step {step} is used instead", CheckpointWarning, 2)
            return found
    if named is None:
        return None
    why = "; ".join(reasons.values()) or f"{folder / LATEST} names {step_name(named)}, and no checkpoint is there"
    raise InputError(f"no checkpoint in {folder} can be used: {why}")


def _listed(folder: Path) -> tuple[list[int], int | None]:
    """The steps that are there, and the one that ``LATEST`` names, which whoever trains may have moved meanwhile."""
    named, there = _named(folder), saved_steps(folder)
    return there, named if named in there else _named(folder)


# ---- reading


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Whatever goes wrong inside is damage of that file, unless the system refuses to let us see it."""
    try:
        yield
    except DamagedCheckpoint:
        raise
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{file} is missing from its checkpoint") from None
    except OSError as error:
        if error.errno not in GONE:
            raise
        raise DamagedCheckpoint(f"{file} is damaged: {error.strerror}") from None
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedCheckpoint(f"{file} is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def verified(folder: Path, step: int) -> Path:
    """The folder of that step's checkpoint, after comparing each of its files with the manifest.

    Raises:
        InputError: no such checkpoint.
        DamagedCheckpoint: a file is missing or has changed; it is named.
    """
    checkpoint = folder / step_name(step)
    if not checkpoint.is_dir():
        raise InputError(f"no checkpoint of step {step} in {folder}; there are {saved_steps(folder)}")
    manifest = _read_json(checkpoint / MANIFEST)
    for name in {**dict.fromkeys(FILES), **manifest}:
        expected, file = manifest.get(name), checkpoint / name
        if Path(name).name != name:
            raise DamagedCheckpoint(f"{checkpoint / MANIFEST} is damaged: it names a file of another folder")
        if not isinstance(expected, dict):
            raise DamagedCheckpoint(f"{checkpoint / MANIFEST} is damaged: it says nothing of {name}")
        with _damage(file):
            size = file.stat().st_size  # looked at first: what is too large is not read
            if not file.is_file() or size != expected.get("size") or _sha256(file) != expected.get("sha256"):
                raise DamagedCheckpoint(f"{file} is damaged: its content is not what was saved")
    return checkpoint


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """What ``state.json`` says.

    Raises:
        DamagedCheckpoint: it is of another step, or says nothing that can be read.
    """
    facts = _read_json(checkpoint / "state.json")
    if facts.get("step") != int(checkpoint.name.removeprefix("step-")):
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} is damaged: it is of step {str(facts.get('step'))[:20]}")
    return facts


def _read_json(file: Path) -> dict[str, Any]:
    with _damage(file):
        if not file.exists():
            raise FileNotFoundError
        return disk.read_json(file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which the library maps into memory once its header makes sense.

    Raises:
        DamagedCheckpoint: it does not.
    """
    with _damage(file):
        return load_file(file)


def must_fit(file: Path, problems: list[str]) -> None:
    """Refuse a file that has problems.

    Raises:
        InputError: it has; the first five are given.
    """
    if problems:
        first = "; ".join(problem[:160] for problem in problems[:5])
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{file} does not fit the configuration: {first}{more}")


def network_facts(config: Config) -> dict[str, Any]:
    """What a checkpoint says about its network: some settings, such as heads, show in the shape of no tensor."""
    return {"network": config.network.model_dump(mode="json")}


def other_network(facts: Mapping[str, Any], config: Config) -> list[str]:
    """In what the network of a checkpoint, as far as it says, differs from the configuration's."""
    saved, own = facts.get("network"), network_facts(config)["network"]
    if not isinstance(saved, dict):
        return []
    if saved.get("kind") != own["kind"]:
        return [f"network is {str(saved.get('kind'))[:20]}, not {own['kind']}"]
    changed = [name for name in own if name in saved and saved[name] != own[name]]
    return [f"network.{name} is {str(saved[name])[:40]}, not {own[name]}" for name in changed]


def load_weights(network: nn.Module, checkpoint: Path, name: str, config: Config) -> None:
    """Load a network's weights, all of them or none.

    Args:
        network: built from the configuration.
        checkpoint: a folder that was verified.
        name: "model" or "ema".
        config: what the run's folder says it is.

    Raises:
        InputError: the weights do not fit the network; the differences are listed.
        DamagedCheckpoint: they cannot be read.
    """
    file = checkpoint / f"{name}.safetensors"
    told, tensors = other_network(read_facts(checkpoint), config), read_tensors(file)
    must_fit(file, told + differences(tensors, network.state_dict()))
    network.load_state_dict(tensors)


def _has(checkpoint: Path, part: str) -> bool:
    """Whether a checkpoint that was verified has tensors of that name."""
    return f"{part}.safetensors" in _read_json(checkpoint / MANIFEST)


def load_average(network: nn.Module, checkpoint: Path, width: float, config: Config) -> None:
    """Load the power-function average of a relative width that was tracked, all of it or nothing.

    Raises:
        InputError: that width was not tracked, or the weights do not fit the network.
        DamagedCheckpoint: they cannot be read.
    """
    file, start = checkpoint / "averages.safetensors", tensor_name(width)
    stored = read_tensors(file) if _has(checkpoint, "averages") else {}
    tensors = {name.removeprefix(start): tensor for name, tensor in stored.items() if name.startswith(start)}
    if not tensors:
        run, tracked = checkpoint.parent.parent, " and ".join(map(str, config.averages))
        if not tracked:
            raise InputError(f"no averages were tracked in {run}: choose 'ema' or 'raw'")
        raise InputError(
            f"the averages tracked in {run} are {tracked}: ditlab ema {run} --sigma-rel {width} makes another, as a run"
        )
    must_fit(
        file, other_network(read_facts(checkpoint), config) + differences(tensors, dict(network.named_parameters()))
    )
    network.load_state_dict(tensors, strict=False)  # an average has no buffers


def load_checkpoint(folder: Path, state: TrainState, step: int) -> None:
    """Bring ``state`` to where it was when that step was saved, in all or, if anything does not fit, in nothing.

    Raises:
        InputError: it does not fit the configuration or the data.
        DamagedCheckpoint: it is not what was saved.
    """
    checkpoint = verified(folder, step)
    facts = read_facts(checkpoint)
    files = {name: checkpoint / f"{name}.safetensors" for name in state.tensors()}
    if absent := [name for name in files if not _has(checkpoint, name)]:
        raise InputError(f"{checkpoint} has no {absent[0]}, which config.json asks for: put back what it said before")
    parts = {name: read_tensors(file) for name, file in files.items()}
    told = other_network(facts, state.config)
    for name, problems in state.differences(parts).items():
        must_fit(checkpoint / f"{name}.safetensors", (told if name == "model" else []) + problems)
    try:
        state.take_facts(facts)
    except InputError:
        raise
    except Exception as error:
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} is damaged: {_first_line(error)}") from None
    state.load_tensors(parts)
