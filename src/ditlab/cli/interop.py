"""``ditlab import`` and ``ditlab export``: published checkpoints into runs, and runs into what others read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from ditlab.cli.options import ExportOptions, ImportOptions, parse
from ditlab.cli.output import report, say
from ditlab.config import ExternalData, SamplingConfig
from ditlab.core.errors import pasted, printable

FEW = 50  # steps


def import_(arguments: Sequence[str]) -> int:
    """Make a run of a published checkpoint."""
    options = parse(ImportOptions, arguments, "ditlab import")
    from ditlab.interop.imports import import_checkpoint

    folder, imported = import_checkpoint(
        options.path,
        options.format,
        options.out,
        preset=options.preset,
        heads=options.heads,
        num_classes=options.num_classes,
        time_frequency_shift=options.time_frequency_shift,
    )
    for note in imported.notes:
        say(f"note: {printable(note)}")
    config = imported.config
    data = cast(ExternalData, config.data)
    report(
        {
            "run": str(folder.path),
            "parameters": sum(math.prod(tensor.shape) for tensor in imported.model.values()),
            "shape": list(data.shape),
            "num_classes": data.num_classes,
            "latent_scale": data.latent_scale,
            "network": config.network.model_dump(),
            "process": config.process.model_dump(),
            "sampling": config.sampling.model_dump(),
        },
        options.as_json,
    )
    say(f"\nNext: ditlab sample {pasted(folder.path)} --n 4 {_cost(config.sampling)}")
    return 0


def _cost(sampling: SamplingConfig) -> str:
    """The rest of a command that draws in a bearable time, and what its authors would take."""
    steps = f"--steps {FEW} " if sampling.steps > FEW else ""
    guided = "guided " if sampling.guidance != 1 else ""
    return f"{steps}--out x.npz (published: {sampling.steps} {guided}steps)"


def export(arguments: Sequence[str]) -> int:
    """Write a run's network in a form that others read."""
    options = parse(ExportOptions, arguments, "ditlab export")
    from ditlab.interop.exports import export_run

    exported = export_run(options.run, options.format, options.out, weights=options.weights, vae=options.vae)
    for note in exported.notes:
        say(f"note: {printable(note)}")
    report({"out": str(exported.path), "format": options.format, "weights": options.weights}, options.as_json)
    return 0
