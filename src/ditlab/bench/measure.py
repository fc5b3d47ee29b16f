"""``ditlab bench``: training and sampling compared with peers and with the machine's limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ditlab.bench.attention import measure_attention
from ditlab.bench.ceiling import find_ceiling, products_of
from ditlab.bench.contestants import PEER, available
from ditlab.bench.rows import DTYPES, THOROUGH, Effort, Table
from ditlab.bench.sampling import evaluations
from ditlab.bench.sizes import Size, Task
from ditlab.bench.training import COMPILED, EAGER, emulates_bf16, use_measured_kernels
from ditlab.machine.profile import in_words, profile
from ditlab.training.compilation import why_not

TASKS: tuple[Task, ...] = ("train", "sample")


def measure(
    sizes: list[Size],
    device: torch.device,
    effort: Effort = THOROUGH,
    say: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure everything; docs/benchmarks.md describes the returned JSON object.

    Args:
        sizes: sizes to measure.
        device: device to measure.
        effort: how long to measure.
        say: called with what is being done, and what could not be done.
        keep: called with all results so far, after each table.
    """
    use_measured_kernels(device)
    names = available()
    ways, notes = _ways(names, device, effort)
    for note in notes:
        say(f"note: {note}")
    say("matrix products")
    products = products_of(sizes, device)
    dtypes = ["fp32"] if emulates_bf16(device) else DTYPES
    ceilings = {dtype: find_ceiling(products, dtype, device, effort.turn / 4) for dtype in dtypes}
    figures: dict[str, Any] = {
        "sizes": {size.name: asdict(size) for size in sizes},
        "sampler": {
            size.name: {"solver": "heun", "steps": size.steps, "evaluations": evaluations(size)} for size in sizes
        },
        "ceilings": {
            dtype: {"flops_per_s": ceiling.flops_per_s, "product": list(ceiling.product), "by": ceiling.by}
            for dtype, ceiling in ceilings.items()
        },
        "ceilings_in_rounds": {size.name: {} for size in sizes},
        "speed": {size.name: {} for size in sizes},
        "memory": {size.name: {} for size in sizes},
        "notes": notes,
    }
    keep(figures)
    for size in sizes:
        for task in TASKS:
            table = Table(size, task, names, ways, ceilings, device, effort, say)
            figures["memory"][size.name][task] = table.memory() if effort.processes else {}
            figures["speed"][size.name][task] = table.speed()
            figures["ceilings_in_rounds"][size.name][task] = table.limits
            keep(figures)
    if device.type == "cuda":
        say("attention")
        figures["attention"] = measure_attention(sizes[-1], device, effort.rounds, effort.turn)
        keep(figures)
    return figures


def _ways(names: list[str], device: torch.device, effort: Effort) -> tuple[list[str], list[str]]:
    """How networks are run, and notes on what is left out."""
    ways, notes = [EAGER], []
    if PEER not in names:
        notes.append("diffusers is not installed, so its rows are left out: pip install 'ditlab[latents]'")
    if effort.compiled:
        reason = why_not(device)
        if reason is None:
            ways.append(COMPILED)
        else:
            notes.append(f"nothing is compiled, as torch.compile does not work here: {reason}")
    if emulates_bf16(device):
        notes.append(f"bf16 is left out: {in_words(profile().bf16, 'bf16')} on this processor")
    return ways, notes
