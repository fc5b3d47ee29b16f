"""Runs into what facebookresearch/DiT, SiT, diffusers and onnxruntime read, and into runs of their weights alone."""

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
    """What was written, and what a person should know about it."""

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
    """Write a run's network in a form that others read; nothing half-written is left behind.

    Args:
        run: a run's folder, its name in ``runs/``, or a loaded run.
        format: ``"facebook-dit"`` is a state dict, of DiT for a DDPM run and of SiT for a flow-matching run;
            ``"diffusers"`` the folder of a ``DiTPipeline``; ``"onnx"`` a file with the inputs x, t in [0, 1] and, with
            labels, label, for any number of samples; ``"ditlab"`` a run's folder that holds these weights in one file,
            however many processes trained them, and nothing that only training needs.
        out: file or folder, which must not be there yet.
        weights: averaged weights, the last ones, or an average that is tracked; of a loaded run, those it was loaded
            with.
        vae: for ``"diffusers"``: folder of an autoencoder to copy into the pipeline; None is the run's own.

    Raises:
        InputError: the format cannot say what the run is; the settings are named.
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
        raise InputError(f"--vae goes with --format diffusers alone: {format} holds the network only")
    must_be_free(out)
    loaded = run if isinstance(run, Run) else load(run, weights=weights, device="cpu")
    with made_whole(out) as path:
        notes = writers[format](loaded, path)
    return Exported(out, notes)


def _write_run(run: Run, path: Path) -> tuple[str, ...]:
    """A run of these weights alone."""
    folder, weights = RunFolder(path), run.process.network.state_dict()
    folder.write_config(run.config.model_copy(update={"averages": ()}))
    parts: dict[str, dict[str, Tensor]] = {"model": weights, "ema": weights, "optimizer": {}}
    write_checkpoint(folder.checkpoints, run.step, parts, network_facts(run.config) | {"run": str(run.folder.path)})
    return ()


def _write_facebook(run: Run, path: Path) -> tuple[str, ...]:
    """A state dict in the layout of facebookresearch/DiT, or of SiT."""
    flow = run.config.process.kind == "flow"
    tensors = expressed(run, SIT if flow else FACEBOOK)
    network = run.config.network
    assert network.kind == "dit"
    with path.open("wb") as stream:
        try:
            torch.save(to_theirs(tensors, facebook_names(network.depth)), stream)
        except RuntimeError as error:  # the archive's end cannot be written either, and says so in its own way
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    if not flow:
        return ()
    return (
        "this is SiT's layout, as flow matching is: build SiT with learn_sigma=False, for the half of its last layer "
        "that it never uses is not there",
    )
