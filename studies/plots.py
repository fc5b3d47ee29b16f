"""The style of the studies' plots: white, few lines, nothing superfluous."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")
FAINT = "#94a3b8"
TEXT = "#0f172a"
DPI = 120


def page(title: str, columns: int = 1, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A row of plots under one title, sizes in inches."""
    whole = width * columns + 0.4
    lines = textwrap.wrap(title, int(13 * whole))
    figure = Figure(figsize=(whole, height + 0.2 * len(lines)), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle("\n".join(lines), fontsize=11, color=TEXT, x=0.01, ha="left")
    return figure, [_plain(figure.add_subplot(1, columns, i + 1)) for i in range(columns)]


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=TEXT, labelsize=8, width=0.6)
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def name(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set the title and the axis labels of a plot."""
    axes.set_title(title, fontsize=9, loc="left", color=TEXT)
    axes.set_xlabel(x, fontsize=8, color=TEXT)
    axes.set_ylabel(y, fontsize=8, color=TEXT)


def key(axes: Axes, **options: Any) -> None:
    """A legend without a frame."""
    axes.legend(fontsize=8, frameon=False, **options)


def key_below(axes: Axes, **options: Any) -> None:
    """A legend below the plot, where it hides no line."""
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), **options)


def level(axes: Axes, height: float, text: str, color: str = FAINT, left: bool = False) -> None:
    """A dashed line with a label at its right or left end."""
    axes.axhline(height, color=color, linewidth=1, linestyle="--")
    axes.annotate(
        text,
        (0 if left else 1, height),
        xycoords=("axes fraction", "data"),
        xytext=(2 if left else 0, 3),
        textcoords="offset points",
        ha="left" if left else "right",
        fontsize=7.5,
        color="#64748b" if color == FAINT else color,
    )


def upright(axes: Axes, x: float, text: str, height: float = 0.02) -> None:
    """A dotted vertical line with a label, at a height given as a share of the plot's."""
    axes.axvline(x, color=FAINT, linewidth=1, linestyle=":")
    axes.annotate(
        text,
        (x, height),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=7.5,
        color="#64748b",
    )


def band(axes: Axes, x: Sequence[float], figures: dict[str, Any], color: str, **look: Any) -> None:
    """A line of ``curve_over_seeds`` with a band for its intervals; ``look`` has matplotlib's line properties."""
    axes.fill_between(x, figures["low"], figures["high"], color=color, alpha=0.15, linewidth=0)
    drawn: dict[str, Any] = {"linewidth": 1.4} | look
    axes.plot(x, figures["value"], color=color, **drawn)


def bars(axes: Axes, labels: Sequence[str], figures: Sequence[dict[str, Any]], colors: Sequence[str] = COLORS) -> None:
    """One bar per figure of the JSON, with its interval."""
    values = [each["value"] for each in figures]
    errors = [[each["value"] - each["low"] for each in figures], [each["high"] - each["value"] for each in figures]]
    shades = [colors[i % len(colors)] for i in range(len(values))]
    axes.bar(range(len(values)), values, width=0.62, color=shades, alpha=0.9)
    axes.errorbar(range(len(values)), values, yerr=errors, fmt="none", ecolor=TEXT, elinewidth=1, capsize=3)
    axes.set_xticks(range(len(values)), labels, fontsize=8)


def dots(axes: Axes, x: Sequence[float], figures: Sequence[dict[str, Any]], color: str, **look: Any) -> None:
    """One dot per figure of the JSON, with its interval; ``look`` has matplotlib's properties."""
    values = [each["value"] for each in figures]
    errors = [[each["value"] - each["low"] for each in figures], [each["high"] - each["value"] for each in figures]]
    drawn: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 1, "linewidth": 1.2} | look
    axes.errorbar(x, values, yerr=errors, color=color, **drawn)
