"""How often do the printed intervals contain what they are meant to cover?

    python benchmarks/intervals.py                          3 minutes on two CPU cores: all cover 93 to 99 %, except
                                                            medians of 3 rounds, which say that they cover 75 %
    python benchmarks/intervals.py --n 200 1000 --draws 1000   an hour

Samples and data are drawn repeatedly: Gaussians of 2 and of 16 dimensions, with the samples distributed alike or
shifted by one standard deviation; for memorisation, one sample in ten is a copy of a training datum. An interval should
cover the mean of the figure over all draws. The intervals of studies and of medians are tested on values drawn as their
docstrings assume. ``--before FILE`` adds the coverages of an earlier result for comparison.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ditlab.bench.machine import as_result, write_result
from ditlab.bench.rounds import median
from ditlab.core.rng import generator_for
from ditlab.evaluation.metrics import kid as kernel
from ditlab.evaluation.metrics.comparison import Reference, judged
from ditlab.evaluation.metrics.memorisation import Bank, memorised
from studies.intervals import counted, over_seeds

OUT = Path(__file__).parent / "results" / "intervals.json"
SHIFTS = {"alike": 0.0, "shifted": 1.0}
COPIES = 0.1  # share of copies among the samples
TRAINED = 1000  # training data in the search for copies
CHEAP = 10  # times as many draws for fast figures

Figures = dict[str, tuple[float, ...]]  # value, lower and upper end


def evaluated(n: int, d: int, kind: str, generator: torch.Generator) -> Figures:
    """The figures of ``ditlab eval`` for n samples and as many data."""
    x, y = (torch.randn(n, d, generator=generator) for _ in range(2))
    found = Reference(y).figures(x + SHIFTS[kind] / d**0.5)
    z, plain = torch.randn(n, d, generator=generator), torch.randn(TRAINED, d, generator=generator)
    chosen = torch.rand(n, generator=generator) < COPIES
    z = z + SHIFTS[kind] / d**0.5
    z[chosen] = plain[torch.randint(TRAINED, (int(chosen.sum()),), generator=generator)]
    bank = Bank(plain)
    found |= memorised(bank, bank.nearest(z, 2))
    names = [name.removesuffix("_interval") for name in found if name.endswith("_interval")]
    return {name: (found[name], *found[f"{name}_interval"]) for name in names}


def of_shares(n: int, generator: torch.Generator) -> Figures:
    """Shares of independent samples, such as ``valid`` and ``accuracy``, and of counted trials."""
    found: Figures = {}
    for share in (0.5, 0.9, 0.99):
        hits = (torch.rand(n, generator=generator) < share).long()
        told = judged(hits, torch.ones_like(hits))
        found[f"accuracy of {share:g}, {n} samples"] = (told["accuracy"], *told["accuracy_interval"])
        found[f"counted {share:g}, {n} trials"] = tuple(counted(int(hits.sum()), n)[:3])
    return found


def of_repeated(n: int, generator: torch.Generator) -> Figures:
    """Means over seeds, and medians over rounds, of normal values."""
    values = torch.randn(n, generator=generator).tolist()
    return {f"t over {n} seeds": tuple(over_seeds(values)[:3]), f"median of {n} rounds": tuple(median(values))}


def simulated(draw: Callable[[torch.Generator], Figures], draws: int, *name: str | int) -> dict[str, Any]:
    """Mean and standard deviation of each figure, and how often its interval contained the mean."""
    drawn = [draw(generator_for(0, "benchmark", "intervals", *name, i)) for i in range(draws)]
    rows = {}
    for figure in drawn[0]:
        values, low, high = torch.tensor([each[figure] for each in drawn], dtype=torch.float64).T
        target = values.mean()
        below, above = (float(missed.double().mean()) for missed in (high < target, low > target))
        rows[figure] = {"mean": float(target), "scatter": float(values.std()), "coverage": 1 - below - above}
        rows[figure] |= {"ends below": below, "begins above": above}
    return rows


def setting(n: int, d: int, kind: str) -> str:
    """Its name in the result."""
    return f"{kind}, {d} dimensions, n = {n}"


def told(rows: dict[str, dict[str, float]]) -> str:
    """Coverages, one per line."""
    return "\n".join(f"  {row['coverage']:.1%} {name}" for name, row in rows.items())


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[200], help="number of samples, and of data")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--before", type=Path, help="an earlier result")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    kernel.SUBSETS = 2  # subsets have no interval
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for n in options.n:
        for d in (2, 16):
            for kind in SHIFTS:
                found = simulated(partial(evaluated, n, d, kind), options.draws, n, d, kind)
                for name, row in found.items():
                    figures.setdefault(name, {})[setting(n, d, kind)] = row
                print(
                    setting(n, d, kind), *(f"  {row['coverage']:.1%} {name}" for name, row in found.items()), sep="\n"
                )
    others: dict[str, Any] = {}
    for name, draw, sizes in (("shares", of_shares, (200,)), ("repeated", of_repeated, (3, 6, 9, 15))):
        for n in sizes:
            others |= simulated(partial(draw, n), CHEAP * options.draws, name, n)
    print(told(others))
    if options.before is not None:
        earlier = json.loads(options.before.read_text())["figures"]
        for name, rows in figures.items():
            for where, row in rows.items():
                row["before"] = earlier[name][where]["coverage"]
    write_result(options.out, as_result({"draws": options.draws, "figures": figures, "others": others}))


if __name__ == "__main__":
    main()
