"""``ditlab bench``: how fast this machine trains and samples, beside peers and beside its own limit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditlab.bench.sizes import sizes_of
from ditlab.cli.options import BenchOptions, parse
from ditlab.cli.output import say
from ditlab.core.errors import InputError


def bench(arguments: Sequence[str]) -> int:
    """Measure, and print a table or one JSON object."""
    options = parse(BenchOptions, arguments, "ditlab bench")
    if options.machine:
        return _machine(options)
    out = None if options.out is None else Path(options.out)
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise InputError(f"--out {out} must be a file that ends in .json")
    import torch

    from ditlab.bench.machine import as_result, write_result
    from ditlab.bench.measure import measure
    from ditlab.bench.rows import QUICK, THOROUGH
    from ditlab.bench.table import lines
    from ditlab.core.device import resolve_device
    from ditlab.machine.threads import limit

    device = resolve_device(options.device)
    torch.set_num_threads(min(torch.get_num_threads(), limit()))
    sizes = sizes_of(options.sizes, device.type)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes that it takes
    effort = QUICK if options.quick else THOROUGH._replace(compiled=not options.eager)

    def keep(figures: dict[str, Any]) -> None:
        if out is not None:
            write_result(out, as_result(figures, device))

    result = as_result(measure(sizes, device, effort, say, keep), device)
    if options.as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        print("\n".join(lines(result)))
    return 0


def _machine(options: BenchOptions) -> int:
    """Measure this machine's profile anew, for all that comes after, and print it."""
    if options != BenchOptions(machine=True, as_json=options.as_json):
        raise InputError("--machine measures the processor alone: leave all options out but --json")
    from dataclasses import asdict

    from ditlab.machine.profile import UNKEPT, keep, measure

    found = measure()
    if not keep(found):
        say(f"note: {UNKEPT}")
    chosen = {"precision": found.precision, "muon": found.muon, "kernels": found.kernels._asdict()}
    print(json.dumps(asdict(found) | {"chosen": chosen}) if options.as_json else "\n".join(found.lines()))
    return 0
