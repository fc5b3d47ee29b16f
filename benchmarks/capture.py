"""What does the probe cost? Times with attention maps and gates recorded, over those without.

    python benchmarks/capture.py            two minutes on two CPU cores

Measures forward passes of 64 images through the lesson's DiT at 16, 64 and 256 patches: plain, and with the probe
recording everything, only gates, one layer, or one query. Also measures training steps on circles with everything
recorded in each step, in one of 10 and in one of 100. These are compiled where ``ditlab train`` would compile, except
for recorded steps, because compiled code calls no hooks. ``ratio`` is the median over rounds of the time over that of
the plain way in the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ditlab
from ditlab.bench.machine import as_result, write_result
from ditlab.bench.rounds import Work, interleaved, median, ratios
from ditlab.bench.training import as_trained
from ditlab.recipes import circles
from ditlab.runs.build import build_dataset
from ditlab.training.compilation import uncompiled
from ditlab.training.loop import TrainState, train

OUT = Path(__file__).parent / "results" / "capture.json"
CPU = torch.device("cpu")
BATCH, SIDES, EVERY = 64, (16, 32, 64), (1, 10, 100)
PLAIN = "plain"
WAYS: dict[str, dict[str, Any]] = {
    "attention and gates": {},
    "gates": {"attention": False},
    "attention of one layer": {"gates": False, "layers": [0]},
    "attention of one query": {"gates": False, "queries": [0]},
}


def forward_ways(side: int) -> dict[str, Work]:
    """Forward passes of images of that side."""
    network = ditlab.DiT(image_size=side).eval().requires_grad_(False)
    x, t = torch.randn(BATCH, 1, side, side), torch.rand(BATCH)

    def probed(options: dict[str, Any]) -> Work:
        def work() -> None:
            with ditlab.probe(network, **options):
                network(x, t)

        return work

    return {PLAIN: lambda: network(x, t), **{name: probed(options) for name, options in WAYS.items()}}


def training_ways() -> dict[str, Callable[[int], None]]:
    """The given number of training steps on circles, plain or with the first one probed."""
    config = circles().model_copy(update={"device": "cpu"})
    dataset = build_dataset(config)
    config = as_trained(config, dataset).model_copy(update={"steps": 10**7, "average_every": 10**7})
    state = TrainState(config, dataset)
    loop = train(state, dataset)

    def plain(steps: int) -> None:
        for _ in range(steps):
            next(loop)

    def probed(steps: int) -> None:
        with uncompiled(state.network), ditlab.probe(state.network):
            next(loop)
        plain(steps - 1)

    return {PLAIN: plain, "attention and gates": probed}


def compared(turns: dict[str, Work], rounds: int, turn: float) -> dict[str, Any]:
    """A row for each way."""
    measured = interleaved(turns, rounds, turn, CPU)
    rows = {}
    for name, times in measured.items():
        ratio = ratios(times, measured[PLAIN])
        rows[name] = {
            "ms": 1e3 * median(times).value,
            "ratio": ratio.value,
            "ratio_interval": [ratio.low, ratio.high],
        }
        print(f"  {name:<24}{rows[name]['ms']:9.2f} ms  {ratio.value:5.2f} × [{ratio.low:.2f}, {ratio.high:.2f}]")
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--turn", type=float, default=0.3, help="minimum seconds of a turn")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    figures: dict[str, Any] = {"rounds": options.rounds, "batch": BATCH, "forward": {}, "training": {}}
    for side in SIDES:
        patches = (side // 4) ** 2
        print(f"forward pass, {patches} patches")
        figures["forward"][patches] = compared(forward_ways(side), options.rounds, options.turn)
    ways = training_ways()
    for every in EVERY:
        print(f"{every} training steps, one of them probed")
        turns: dict[str, Work] = {name: partial(work, every) for name, work in ways.items()}
        figures["training"][every] = compared(turns, options.rounds, options.turn)
    write_result(options.out, as_result(figures))


if __name__ == "__main__":
    main()
