"""Make runs of published checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ditlab.core.disk import made_whole, must_be_free
from ditlab.core.errors import ConfigError, InputError, first_line
from ditlab.interop.diffusers_read import read_diffusers
from ditlab.interop.dit_sit import read_facebook
from ditlab.interop.imported_network import Imported
from ditlab.runs.checkpoint import write_checkpoint
from ditlab.runs.folder import RunFolder
from ditlab.runs.weights import network_facts

Format = Literal["facebook-dit", "sit", "repa", "diffusers"]


class ImportedRun(NamedTuple):
    """A new run folder, and what was imported into it."""

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
    """Make a run of a published checkpoint. No code in the file runs, and on failure nothing is left behind.

    Args:
        path: a state dict of torch.save or safetensors (``"facebook-dit"``, ``"sit"``, ``"repa"``), or a model's or
            pipeline's folder (``"diffusers"``).
        format: how to interpret it; the three kinds of state dict look alike but mean different things.
        out: folder of the run, which must not exist yet.
        preset: a published size, such as "DiT-XL/2", that a state dict must fit.
        heads: number of heads, for a state dict without a published width.
        num_classes: number of labels of a state dict; None as in ``read_facebook``.
        time_frequency_shift: 1 (None is 1) computes a diffusers model as diffusers does; 0 as facebookresearch/DiT,
            from which the published one was converted.

    Raises:
        InputError: what is wrong, in one line.
    """
    path, out = Path(path), Path(out)
    must_be_free(out)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if format == "diffusers":
        told = {"--preset": preset, "--heads": heads, "--num-classes": num_classes}
        if given := [option for option, value in told.items() if value is not None]:
            raise InputError(f"{', '.join(given)}: a diffusers model says that in its config.json; leave it out")
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
    """Report any error while reading a foreign file as a fault of the file."""
    try:
        yield
    except (InputError, OSError, ImportError):
        raise
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        reason = first_line(error, 160, kind=True)
        raise InputError(f"{path} cannot be read as a {format} checkpoint: {reason}") from error


def _write(out: Path, imported: Imported) -> RunFolder:
    """Write the run atomically."""
    with made_whole(out) as path:
        folder = RunFolder(path)
        folder.write_config(imported.config)
        parts = {"model": imported.model, "ema": imported.ema, "optimizer": {}}
        write_checkpoint(folder.checkpoints, 0, parts, network_facts(imported.config))
    return RunFolder(out)
