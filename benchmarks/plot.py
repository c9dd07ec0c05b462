"""Line and interval plots of results, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws without a display
from matplotlib import pyplot
from matplotlib.ticker import PercentFormatter

COLORS = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#6c3483", "#5d6d7e", "#d6478f", "#16a3b0")
GRID = "#e5e8e8"


@dataclass(frozen=True)
class Line:
    """A named line through points (x, y); the first line of a plot is drawn bold."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class IntervalRow:
    """A named share in [0, 1] with its 95% interval; bold rows stand out."""

    name: str
    value: float
    low: float
    high: float
    bold: bool = False


def line_plot(path: Path, title: str, lines: Sequence[Line], shares: bool = False) -> None:
    """Save a plot of named lines. The x values of the first line are evenly spaced.

    shares: whether the values are shares in [0, 1], on a linear axis; otherwise the axis is logarithmic.
    """
    ticks = [x for x, _ in lines[0].points]
    figure, axes = pyplot.subplots(figsize=(7.6, 4.2))
    for number, line in enumerate(lines):
        places, values = zip(*((ticks.index(x), y) for x, y in line.points), strict=True)
        color, width = COLORS[number % len(COLORS)], 3 if number == 0 else 1.8
        axes.plot(places, values, marker="o", color=color, linewidth=width, label=line.name)
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    if shares:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        axes.set_yscale("log")
    axes.grid(axis="y", color=GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, axes, path, title)


def interval_plot(
    path: Path, title: str, rows: Sequence[IntervalRow], reference: float | None = None, label: str = ""
) -> None:
    """Save a plot with one row for each share: its name, its value and its interval.

    reference: a share that a dashed line marks.
    label: of the axis.
    """
    figure, axes = pyplot.subplots(figsize=(7.6, 1 + 0.26 * len(rows)))
    for place, row in enumerate(rows):
        color = COLORS[0] if row.bold else COLORS[1]
        axes.plot([row.low, row.high], [place, place], color=color, linewidth=3 if row.bold else 2)
        axes.plot([row.value], [place], marker="o", color=color)
        axes.annotate(f"{row.value:.1%}", (1.02, place), xycoords=("axes fraction", "data"), va="center", color=color)
    if reference is not None:
        axes.axvline(reference, color="#2c3e50", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel(label)
    _save(figure, axes, path, title)


def _save(figure: Any, axes: Any, path: Path, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
