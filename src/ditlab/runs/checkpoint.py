"""Checkpoints: a folder that is either whole or not there, of safetensors and JSON, with a manifest of its files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditlab.core import disk
from ditlab.core.distributed import Ranks
from ditlab.core.errors import CheckpointWarning, DamagedCheckpoint, InputError, first_line
from ditlab.runs import sharded as shards

LATEST = "LATEST"
MANIFEST = "manifest.json"
PARTS = ("model", "ema", "optimizer")  # of every checkpoint
FILES = (*(f"{part}.safetensors" for part in PARTS), "state.json")  # as they lie where one process saved them
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of a file in a manifest
ODD = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)  # content
REFUSED = re.compile(r"(?:os error |\()(11|12|13|23|24)\)")  # by the system, as libraries say it
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)  # errors of a file that damage explains
T = TypeVar("T")


def step_name(step: int) -> str:
    """The name of a step in a run folder: "step-00002000"."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that what lies in a run folder is named after."""
    return int(path.stem.removeprefix("step-"))


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
        _conclude(temporary, step, facts)

    if not target.exists():
        disk.write_folder(target, fill)
    point(folder, step)
    return target


def write_sharded(
    folder: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any] | None,
    written: Callable[[], None],
    ranks: Ranks,
) -> None:
    """``write_checkpoint`` by all processes: each writes its share of a part into a folder of the part's name."""
    target = folder / step_name(step)

    def begin() -> Path | None:
        if target.exists():
            return None
        temporary = disk.begin_folder(target)
        for name, tensors in parts.items():
            if tensors:
                (temporary / name).mkdir()
            else:  # the optimizer's before its first step
                disk.write(temporary / f"{name}.safetensors", partial(save_tensors, tensors={}))
        return temporary

    temporary = ranks.decided(begin)
    if temporary is not None:
        try:
            for name, tensors in parts.items():
                ranks.decided(partial(disk.before, "write", temporary / name / "shares"))
                shards.save(temporary / name, tensors)
                written()
            files = ranks.decided(lambda: sorted(file for file in temporary.rglob("*") if file.is_file()))
            digests = ranks.together(lambda: _settled(temporary, files[ranks.rank :: ranks.world]))
            every = {name: digest for some in ranks.all(digests) for name, digest in some.items()}
            ranks.decided(lambda: _conclude(temporary, step, facts, every))
            ranks.decided(lambda: disk.end_folder(temporary, target))
        except BaseException:
            if ranks.first:
                disk.discard(temporary)
            raise
    ranks.decided(lambda: point(folder, step))


def _conclude(
    temporary: Path, step: int, facts: Mapping[str, Any] | None, digests: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write what comes last: the facts, and the manifest of all files."""
    told = json.dumps({**(facts or {}), "step": step, "torch": torch.__version__}, allow_nan=False)
    disk.write(temporary / "state.json", lambda path: path.write_text(told))
    manifest = (
        _digests(temporary, sorted(temporary.iterdir()))
        if digests is None
        else digests | _digest(temporary, temporary / "state.json")
    )
    disk.write(temporary / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))


def _settled(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The digests of files that are as they stay."""
    for file in files:
        if file.parent != folder:
            shards.settle(file)
    return _digests(folder, files)


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of files in a folder or in those within."""
    return {name: entry for file in files for name, entry in _digest(folder, file).items()}


def _digest(folder: Path, file: Path) -> dict[str, dict[str, Any]]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": digest}}


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


# ---- finding


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in order.

    Raises:
        InputError: the folder is a link, or cannot be read.
    """
    there = disk.names(folder, folder.parent)
    return [int(name.removeprefix("step-")) for name in there if re.fullmatch(r"step-[0-9]{8}", name)]


def latest_step(folder: Path) -> int | None:
    """The step that ``LATEST`` names; where it names none that is there, the newest checkpoint's; or None."""
    there, named = saved_steps(folder), _named(folder)
    return named if named in there else max(there, default=None)


def _named(folder: Path) -> int | None:
    """The step that ``LATEST`` names, there or not."""
    with suppress(FileNotFoundError, InputError):
        text = disk.read(folder / LATEST, 100, folder.parent).strip()
        if re.fullmatch(rb"step-[0-9]{8}", text):
            return int(text.removeprefix(b"step-"))
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
            if not os.path.lexists(folder / step_name(step)):  # deleted while it was read: there is a newer one
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
def damage(file: Path) -> Iterator[None]:
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
    except ODD as error:
        if refused := REFUSED.search(str(error)):  # such as too many open files, or no memory: the file is whole
            raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(file)) from None
        raise DamagedCheckpoint(f"{file} is damaged: {first_line(error, 120, kind=True)}") from None


def verified(folder: Path, step: int) -> Path:
    """The folder of that step's checkpoint, after comparing each of its files with the manifest.

    Raises:
        InputError: no such checkpoint.
        DamagedCheckpoint: a file is missing, has changed or does not belong there; it is named.
    """
    checkpoint = folder / step_name(step)
    if step not in (there := saved_steps(folder)):
        raise InputError(f"no checkpoint of step {step} in {folder}; there are {there}")
    manifest = read_json(checkpoint / MANIFEST)
    folders = {name.partition("/")[0] for name in manifest if "/" in name}
    needed = [f"{part}.safetensors" for part in PARTS if part not in folders]
    for name in dict.fromkeys([*needed, "state.json", *manifest]):
        expected, file = manifest.get(name), checkpoint / name
        if not isinstance(expected, dict) or not NAME.fullmatch(name):
            raise DamagedCheckpoint(f"{checkpoint / MANIFEST} is damaged: it says nothing of {name[:80]}")
        with damage(file), disk.opened(file, folder.parent) as stream:
            size = os.fstat(stream.fileno()).st_size  # looked at first: what is too large is not read
            same = size == expected.get("size")
            if not (same and hashlib.file_digest(stream, "sha256").hexdigest() == expected.get("sha256")):
                raise DamagedCheckpoint(f"{file} is damaged: its content is not what was saved")
    for name in folders:
        if f"{name}.safetensors" in manifest:
            raise DamagedCheckpoint(f"{checkpoint / MANIFEST} is damaged: it names {name} both whole and in shards")
        for file in sorted((checkpoint / name).glob("[!.]*.safetensors")):
            if f"{name}/{file.name}" not in manifest:
                raise DamagedCheckpoint(f"{file} does not belong to its checkpoint, whose manifest does not name it")
    return checkpoint


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """What ``state.json`` says.

    Raises:
        DamagedCheckpoint: it is of another step, or says nothing that can be read.
    """
    facts = read_json(checkpoint / "state.json")
    with damage(checkpoint / "state.json"):
        json.dumps(facts, allow_nan=False)  # a number such as 1e999 could not be saved again
    if facts.get("step") != int(checkpoint.name.removeprefix("step-")):
        raise DamagedCheckpoint(f"{checkpoint / 'state.json'} is damaged: it is of step {str(facts.get('step'))[:20]}")
    return facts


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        DamagedCheckpoint: there is none.
    """
    with damage(file):
        if not os.path.lexists(file):
            raise FileNotFoundError
        return disk.read_json(file, file.parents[2])


def read_part(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a part: of its file, mapped into memory once its header makes sense, or of its shards.

    Raises:
        DamagedCheckpoint: they cannot be read, or do not make up each tensor exactly.
    """
    place = place_of(checkpoint, name)
    with damage(place):
        return shards.read(files_of(checkpoint, name)) if place == checkpoint / name else read_tensors(place)


def describe_part(checkpoint: Path, name: str) -> dict[str, shards.Entry]:
    """The tensors of a part by the headers of its files, without their numbers: shapes, types and where they lie.

    Raises:
        DamagedCheckpoint: as ``read_part``.
    """
    with damage(place_of(checkpoint, name)):
        return shards.described(files_of(checkpoint, name))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which the library maps into memory once its header makes sense.

    Raises:
        DamagedCheckpoint: it does not.
    """
    with damage(file):
        return load_file(file)


def files_of(checkpoint: Path, name: str) -> list[Path]:
    """The files of a part, by the manifest: one, or its shards; none where the checkpoint has no such part."""
    named = sorted(read_json(checkpoint / MANIFEST))
    return [checkpoint / file for file in named if file == f"{name}.safetensors" or file.startswith(f"{name}/")]


def place_of(checkpoint: Path, name: str) -> Path:
    """Where a part lies, by the manifest: the folder of its shards, or its file."""
    files = files_of(checkpoint, name)
    return files[0].parent if files and files[0].parent != checkpoint else checkpoint / f"{name}.safetensors"
