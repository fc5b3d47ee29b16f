"""How long does ditlab take to start? Imports and first commands, compared with ``import torch``.

    python benchmarks/startup.py            two minutes on two CPU cores

Each command runs in a process of its own. All take turns, in nine rounds after one that warms the disk cache. ``ratio``
is the median over rounds of a command's seconds over those of ``import torch`` in the same round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from ditlab.bench.machine import as_result, write_result
from ditlab.bench.rounds import Work, interleaved, median, ratios

OUT = Path(__file__).parent / "results" / "startup.json"
DITLAB = [sys.executable, "-m", "ditlab"]
TORCH = "import torch"
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    TORCH: [sys.executable, "-c", "import torch"],
    "import ditlab": [sys.executable, "-c", "import ditlab"],
    "ditlab --help": [*DITLAB, "--help"],
    "ditlab train circles --help": [*DITLAB, "train", "circles", "--help"],
    "import ditlab; ditlab.DiT": [sys.executable, "-c", "import ditlab; ditlab.DiT"],
    "import ditlab; ditlab.load": [sys.executable, "-c", "import ditlab; ditlab.load"],
    "ditlab train circles --steps 1": [*DITLAB, "train", "circles", "--steps", "1"],
}


def start(command: list[str]) -> None:
    """Run it in a folder that it may write to."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, capture_output=True, cwd=folder)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    turns: dict[str, Work] = {name: partial(start, command) for name, command in COMMANDS.items()}
    measured = interleaved(turns, options.rounds, 0.0, torch.device("cpu"), warm_up=1)
    rows = {}
    for name, times in measured.items():
        own, ratio = median(times), ratios(times, measured[TORCH])
        rows[name] = {
            "seconds": own.value,
            "seconds_interval": [own.low, own.high],
            "ratio": ratio.value,
            "ratio_interval": [ratio.low, ratio.high],
        }
        print(f"{name:<34}{own.value:7.2f} s  {ratio.value:5.2f} × import torch [{ratio.low:.2f}, {ratio.high:.2f}]")
    write_result(options.out, as_result({"rounds": options.rounds, "commands": rows}))


if __name__ == "__main__":
    main()
