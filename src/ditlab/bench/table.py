"""Print the results of ``ditlab bench``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

HEADS = ("", "ms", "images/s", "GFLOP/s", "of limit", "× peer", "× as it comes", "MiB tensors", "MiB resident")
LEAST = 0.95  # coverage of an interval unless stated otherwise
TASKS = {"train": "training step", "sample": "sampling"}


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """The machine, and a table for each size and task."""
    machine = figures["machine"]
    yield f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    for dtype, ceiling in figures["ceilings"].items():
        m, k, n = ceiling["product"]
        rate = f"{ceiling['flops_per_s'] / 1e9:,.0f} GFLOP/s"
        yield f"{dtype} products: {rate} at best, at ({m}, {k})·({k}, {n}) by {ceiling['by']}"
    for size in figures["sizes"]:
        for task, name in TASKS.items():
            rows, memory = figures["speed"][size][task], figures["memory"][size][task]
            yield ""
            yield f"{size}: {name}, batch {figures['sizes'][size]['batch']}"
            for dtype, limit in figures["ceilings_in_rounds"][size][task].items():
                rate, share = limit["flops_per_s"], limit["share_of_best"]
                yield f"{dtype} limit within these rounds: {rate / 1e9:,.0f} GFLOP/s, {100 * share:.0f} % of the best"
            if (covered := min((row["coverage"] for row in rows.values() if "coverage" in row), default=1)) < LEAST:
                yield f"intervals are from smallest to largest and cover the median in {100 * covered:.0f} % of cases"
            peaks = {key: memory.get(key, memory.get(key.rpartition(" ")[0], {})) for key in rows}
            yield from _aligned([HEADS, *(_cells(key, row, peaks[key]) for key, row in rows.items())])
    if figures.get("attention"):
        yield ""
        yield "attention, forward and backward"
        yield from _aligned([("kernel", "width", "µs", "× unpadded"), *map(_kernel, figures["attention"])])


def _cells(name: str, row: dict[str, Any], peaks: dict[str, Any]) -> tuple[str, ...]:
    def interval(key: str) -> str:
        if key not in row:
            return ""
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.2f} [{low:.2f}, {high:.2f}]"

    def mebibytes(key: str) -> str:
        return f"{peaks[key] / 2**20:,.0f}" if key in peaks else ""

    if "refused" in row:
        return name, "refused", *([""] * 5), mebibytes("tensors"), mebibytes("resident")
    return (
        name,
        f"{1e3 * row['seconds']:,.1f}",
        f"{row['images_per_s']:,.4g}",
        f"{row['flops_per_s'] / 1e9:,.0f}",
        f"{100 * row['share_of_ceiling']:.0f} %",
        interval("ratio"),
        interval("ratio_as_it_comes"),
        mebibytes("tensors"),
        mebibytes("resident"),
    )


def _kernel(row: dict[str, Any]) -> tuple[str, ...]:
    if "refused" in row:
        return row["backend"], str(row["width"]), "not supported", ""
    return row["backend"], str(row["width"]), f"{1e6 * row['seconds']:,.0f}", f"{row['ratio']:.2f}"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Align the first column to the left, the others to the right; empty columns are left out."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    for row in rows:
        cells = [row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in kept]
        yield "  ".join(cells).rstrip()
