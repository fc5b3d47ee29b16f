"""How do time and memory of a training step grow with patches, depth and batch?

    python benchmarks/growth.py             three minutes on two CPU cores

A DiT of width 64 and MLP ratio 2, fp32, eager, with 4 blocks, 64 patches and batch 32, changed one at a time. Seconds
are of a forward and a backward pass; memory is the peak of what tensors hold. The exponent p of y ~ x^p is fitted by
least squares to the logarithms; ``last`` is the exponent between the two largest values, for sums of powers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import ditlab
from ditlab.bench.machine import as_result, write_result
from ditlab.bench.memory import tensors_at_peak
from ditlab.bench.rounds import Work, interleaved, median

OUT = Path(__file__).parent / "results" / "growth.json"
CPU = torch.device("cpu")
PATCH = 4  # pixels


class Shape(NamedTuple):
    """The network and the batch."""

    patches: int = 64
    depth: int = 4
    batch: int = 32


VALUES = {"patches": (16, 64, 256, 1024), "depth": (1, 2, 4, 8, 16), "batch": (8, 16, 32, 64, 128)}


def step_of(shape: Shape) -> Work:
    """A forward and a backward pass."""
    side = PATCH * round(shape.patches**0.5)
    network = ditlab.DiT(image_size=side, patch_size=PATCH, depth=shape.depth)
    x, t = torch.randn(shape.batch, 1, side, side), torch.rand(shape.batch)

    def work() -> None:
        network.zero_grad()
        network(x, t).square().mean().backward()

    return work


def exponent(x: tuple[int, ...], y: list[float]) -> dict[str, float]:
    """The p of y ~ x^p: fitted to all values, and between the two largest."""
    slope, _ = np.polyfit(np.log(x), np.log(y), 1)
    last = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
    return {"exponent": float(slope), "last": float(last)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=float, default=0.3, help="minimum seconds of a turn")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    figures: dict[str, Any] = {"rounds": options.rounds, "base": Shape()._asdict(), "growth": {}}
    for name, values in VALUES.items():
        works = {value: step_of(Shape()._replace(**{name: value})) for value in values}
        measured = interleaved(works, options.rounds, options.turn, CPU, warm_up=3)
        seconds = [median(measured[value]).value for value in values]
        peaks = [float(tensors_at_peak(work)) for work in works.values()]
        row: dict[str, Any] = {"values": values, "seconds": seconds, "bytes": peaks}
        row |= {"time": exponent(values, seconds), "memory": exponent(values, peaks)}
        figures["growth"][name] = row
        print(f"{name:<9}time ~ x^{row['time']['exponent']:.2f} (last {row['time']['last']:.2f}), ", end="")
        print(f"memory ~ x^{row['memory']['exponent']:.2f} (last {row['memory']['last']:.2f})")
        for value, took, peak in zip(values, seconds, peaks, strict=True):
            print(f"  {value:>6,}  {1e3 * took:9.1f} ms  {peak / 2**20:8.1f} MiB")
    write_result(options.out, as_result(figures))


if __name__ == "__main__":
    main()
