"""Describe the machine that a measurement was made on, without its name."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ditlab.core.disk import write_atomically
from ditlab.core.malloc import physical
from ditlab.machine.profile import VARIABLES, cpuinfo, processor

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that speed up products


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, GPU and versions."""
    described: dict[str, Any] = {
        "cpu": processor(),
        "instructions": [name for name in INSTRUCTIONS if name in (cpuinfo("flags") or "").split()],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "played": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": round(physical() / 2**30, 1) if math.isfinite(physical()) else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": _version("diffusers"),
    }
    if torch.device(device).type == "cuda":
        described |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return described


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def command() -> str:
    """The command that started this program, without the path of Python."""
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.name != "__main__.py":
        folder = Path.cwd()
        shown = program.resolve().relative_to(folder) if program.resolve().is_relative_to(folder) else program.name
        return shlex.join(["python", str(shown), *sys.argv[1:]])
    return shlex.join(["ditlab", *sys.argv[1:]])


def as_result(figures: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Figures, preceded by the command and the machine."""
    return {"command": command(), "machine": machine(device), **figures}


def write_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result atomically as JSON, with lists of numbers in one line."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    write_atomically(file, lambda path: path.write_text(text))
