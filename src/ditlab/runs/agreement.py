"""What the processes of a job have to agree on before they begin: what was asked for, versions, data, weights."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ditlab.config import Config
from ditlab.config.section import Section
from ditlab.data.dataset import Dataset, External, Prepared
from ditlab.runs.checkpoint import MANIFEST, step_name

LIBRARIES = ("ditlab", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")
HERE = ("--device", "--survey", "--data.path")  # what may be different from machine to machine, if the data are not
LOOKED_AT = 16  # samples of data that do not say what they contain


def versions() -> dict[str, str]:
    """Of everything that computes."""
    return {"Python": platform.python_version(), "torch": torch.__version__} | {
        name: version(name) for name in LIBRARIES
    }


def options_of(section: Section) -> dict[str, object]:
    """Every option, under its name on the command line."""
    named = {f"--{name}": value for name, value in _flat(section.model_dump()).items()}
    return {name: value for name, value in named.items() if not name.startswith(HERE)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        key = f"{prefix}{name}".replace("_", "-")
        flat |= _flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


def content_of(dataset: Dataset, config: Config) -> dict[str, object]:
    """What data are, by what is in them: a digest of all of it, or of some samples of data that are made."""
    if isinstance(dataset, External):
        return {}
    if isinstance(dataset, Prepared):
        return {"the data": dataset.content()}
    batch, digest = dataset.batch(config.seed, 0, LOOKED_AT), hashlib.sha256()
    for values in (batch.x0, *batch.cond.values()):
        digest.update(values.contiguous().numpy().tobytes())
    return {"the data": digest.hexdigest()[:16]}


def weights_of(checkpoints: Path, step: int | None) -> dict[str, object]:
    """Which checkpoint is begun with, by the digest of its manifest, which holds those of its files."""
    if step is None:
        return {"the checkpoint": None}
    manifest = json.loads((checkpoints / step_name(step) / MANIFEST).read_bytes())
    return {
        "the checkpoint": f"{step}, {hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]}"
    }
