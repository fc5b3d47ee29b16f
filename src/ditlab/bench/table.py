"""The figures of ``ditlab bench`` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

HEADS = ("", "ms", "images/s", "GFLOP/s", "of limit", "× peer", "× as it comes", "MiB tensors", "MiB resident")
TASKS = {"train": "training step", "sample": "sampling"}


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """A table for each size and task, after what the machine is."""
    machine = figures["machine"]
    yield f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    for dtype, ceiling in figures["ceilings"].items():
        m, k, n = ceiling["product"]
        yield f"{dtype} products: {ceiling['flops_per_s'] / 1e9:,.0f} GFLOP/s at ({m}, {k})·({k}, {n})"
    for size in figures["sizes"]:
        for task, name in TASKS.items():
            rows, memory = figures["speed"][size][task], figures["memory"][size][task]
            yield ""
            yield f"{size}: {name}, batch {next(iter(rows.values()))['batch']}"
            peaks = {key: memory.get(key, memory.get(key.rpartition(" ")[0], {})) for key in rows}
            yield from _aligned([HEADS, *(_cells(key, row, peaks[key]) for key, row in rows.items())])
    if figures.get("attention"):
        yield ""
        yield "attention, forward and backward"
        yield from _aligned([("kernel", "width", "µs", "× unpadded"), *map(_kernel, figures["attention"])])


def _cells(name: str, row: dict[str, Any], peaks: dict[str, int]) -> tuple[str, ...]:
    def interval(key: str) -> str:
        if key not in row:
            return ""
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.2f} [{low:.2f}, {high:.2f}]"

    def mebibytes(key: str) -> str:
        return f"{peaks[key] / 2**20:,.0f}" if key in peaks else ""

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
        return row["backend"], str(row["width"]), "does not take it", ""
    return row["backend"], str(row["width"]), f"{1e6 * row['seconds']:,.0f}", f"{row['ratio']:.2f}"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The first column to the left, the others to the right; columns without anything are left out."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    for row in rows:
        cells = [row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in kept]
        yield "  ".join(cells).rstrip()
