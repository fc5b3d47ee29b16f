"""Published checkpoints into runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ditlab.core.disk import made_whole, must_be_free
from ditlab.core.errors import ConfigError, InputError
from ditlab.interop.diffusers_read import read_diffusers
from ditlab.interop.dit_sit import read_facebook
from ditlab.interop.imported_network import Imported
from ditlab.runs.checkpoint import write_checkpoint
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import network_facts

Format = Literal["facebook-dit", "sit", "repa", "diffusers"]


class ImportedRun(NamedTuple):
    """A new run folder, what it holds, and what a person should know about it."""

    folder: RunFolder
    imported: Imported


def import_checkpoint(
    path: str | Path,
    format: Format,
    out: str | Path,
    *,
    preset: str | None = None,
    heads: int | None = None,
    num_classes: int | None = None,
    time_frequency_shift: Literal[0, 1] | None = None,
) -> ImportedRun:
    """Make a run of a published checkpoint. Nothing in the file is executed, and no half of a run is left behind.

    Args:
        path: a state dict of torch.save or safetensors (``"facebook-dit"``, ``"sit"``, ``"repa"``), or a model's or
            pipeline's folder (``"diffusers"``).
        format: what it is; the three kinds of state dict look alike and mean different things.
        out: folder of the run, which must not be there yet.
        preset: a published size, such as "DiT-XL/2", that a state dict is to fit.
        heads: of a state dict that has no published width; no tensor tells it.
        num_classes: labels of a state dict; None is as the checkpoint says, or, where it does not, one less than the
            rows of its label table, but all of 10, 100 or 1000.
        time_frequency_shift: 1 (None is 1) computes a diffusers model as diffusers does; 0 as facebookresearch/DiT,
            from which the published one was converted.

    Raises:
        InputError: whatever is wrong, in one line.
    """
    path, out = Path(path), Path(out)
    must_be_free(out)
    if not path.exists():
        raise InputError(f"there is nothing at {path}")
    if format == "diffusers":
        told = {"--preset": preset, "--heads": heads, "--num-classes": num_classes}
        if given := [option for option, value in told.items() if value is not None]:
            raise InputError(f"{', '.join(given)}: the config.json of a diffusers model says that; leave it out")
        with _reading(path, format):
            imported = read_diffusers(path, 1 if time_frequency_shift is None else time_frequency_shift)
        return ImportedRun(_write(out, imported), imported)
    if format not in ("facebook-dit", "sit", "repa"):
        raise InputError(f"unknown format {format!r}; choose facebook-dit, sit, repa or diffusers")
    if time_frequency_shift == 1:
        raise InputError("--time-frequency-shift 1 is diffusers' own; networks of this format have 0: leave it out")
    if preset is not None and heads is not None:
        raise InputError("--preset tells the number of heads: leave --heads out")
    with _reading(path, format):
        imported = read_facebook(path, format, preset, heads, num_classes)
    return ImportedRun(_write(out, imported), imported)


@contextmanager
def _reading(path: Path, format: Format) -> Iterator[None]:
    """What goes wrong while a file of others is read is the file's fault, whatever it is."""
    try:
        yield
    except (InputError, OSError, ImportError):
        raise
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise InputError(f"{path} is no checkpoint of {format} that can be read: {reason}") from error


def _write(out: Path, imported: Imported) -> RunFolder:
    """Write the run; it is at its place when it is whole."""
    with made_whole(out) as path:
        folder = RunFolder(path)
        folder.write_config(imported.config)
        parts = {"model": imported.model, "ema": imported.ema, "optimizer": {}}
        write_checkpoint(folder.checkpoints, 0, parts, network_facts(imported.config))
    return RunFolder(out)
