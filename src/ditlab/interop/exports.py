"""Export runs for facebookresearch/DiT, SiT, diffusers and onnxruntime, or as runs with their weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditlab.core.disk import made_whole, must_be_free
from ditlab.core.errors import InputError
from ditlab.interop.conventions import FACEBOOK, SIT, expressed
from ditlab.interop.diffusers_write import write_pipeline
from ditlab.interop.onnx_file import write_onnx
from ditlab.networks.keymaps import facebook_names, to_theirs
from ditlab.runs.checkpoint import write_checkpoint
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run, load
from ditlab.runs.weights import network_facts

Format = Literal["ditlab", "diffusers", "facebook-dit", "onnx"]


class Exported(NamedTuple):
    """The file or folder written, and notes for the user."""

    path: Path
    notes: tuple[str, ...]


def export_run(
    run: str | Path | Run,
    format: Format,
    out: str | Path,
    *,
    weights: Literal["ema", "raw"] | float = "ema",
    vae: str | Path | None = None,
) -> Exported:
    """Export a run's network; on failure nothing is left behind.

    Args:
        run: a run's folder, its name in ``runs/``, or a loaded run.
        format: ``"facebook-dit"``, a state dict of DiT (DDPM runs) or SiT (flow matching); ``"diffusers"``, the folder
            of a ``DiTPipeline``; ``"onnx"``, a file with inputs x, t in [0, 1] and, with labels, label, for any batch
            size; ``"ditlab"``, a run folder with only the weights, in one file.
        out: file or folder, which must not exist yet.
        weights: averaged weights, raw weights, or the width of a tracked average; ignored for a loaded run.
        vae: for ``"diffusers"``, the folder of an autoencoder to copy into the pipeline; None is the run's own.

    Raises:
        InputError: the format cannot represent the run; the settings are named.
    """
    writers: dict[str, Callable[[Run, Path], tuple[str, ...]]] = {
        "ditlab": _write_run,
        "facebook-dit": _write_facebook,
        "diffusers": lambda run, path: write_pipeline(run, path, vae),
        "onnx": write_onnx,
    }
    out = Path(out)
    if format not in writers:
        raise InputError(f"unknown format {format!r}; choose one of {', '.join(writers)}")
    if vae is not None and format != "diffusers":
        raise InputError(f"--vae goes with --format diffusers only: {format} holds just the network")
    must_be_free(out)
    loaded = run if isinstance(run, Run) else load(run, weights=weights, device="cpu")
    with made_whole(out) as path:
        notes = writers[format](loaded, path)
    return Exported(out, notes)


def _write_run(run: Run, path: Path) -> tuple[str, ...]:
    """Write a run with these weights only."""
    folder, weights = RunFolder(path), run.process.network.state_dict()
    folder.write_config(run.config.model_copy(update={"averages": ()}))
    parts: dict[str, dict[str, Tensor]] = {"model": weights, "ema": weights, "optimizer": {}}
    write_checkpoint(folder.checkpoints, run.step, parts, network_facts(run.config) | {"run": str(run.folder.path)})
    return ()


def _write_facebook(run: Run, path: Path) -> tuple[str, ...]:
    """Write a state dict in the layout of facebookresearch/DiT or SiT."""
    flow = run.config.process.kind == "flow"
    tensors = expressed(run, SIT if flow else FACEBOOK)
    network = run.config.network
    assert network.kind == "dit"
    with path.open("wb") as stream:
        try:
            torch.save(to_theirs(tensors, facebook_names(network.depth)), stream)
        except RuntimeError as error:  # raised by closing the archive, and hides the cause
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    note = "this is a SiT: build it with learn_sigma=False, as the unused half of its last layer is left out"
    return (note,) if flow else ()
