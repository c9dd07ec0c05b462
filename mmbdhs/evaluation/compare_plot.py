"""The picture of several runs: every metric with its 95% interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmbdhs.data import whole_file
from mmbdhs.evaluation.compare import StoredRun
from mmbdhs.evaluation.intervals import Estimate
from mmbdhs.evaluation.scores import ALL, estimates

_COLORS = ("#2471a3", "#c0392b", "#1e8449", "#b9770e", "#6c3483", "#5d6d7e")
_GRID = "#e5e8e8"


def draw(benchmarks: Mapping[str, Mapping[str, StoredRun]], path: Path) -> None:
    """Save a PNG with a panel for each metric of each benchmark, in which each run is a row with its interval.

    benchmarks: the runs by benchmark and name.

    Raises ImportError that names the extra without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: needs the extra 'tune': pip install 'mmbdhs[tune]'") from error
    panels = {
        f"{name}: {metric}": values for name, runs in benchmarks.items() for metric, values in _by_metric(runs).items()
    }
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    runs = max(len(values) for values in panels.values())
    figure = Figure(figsize=(4.6 * columns, rows * (0.9 + 0.32 * runs)), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, values) in zip(places, panels.items(), strict=False):
        _panel(axes, title, values)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def _by_metric(runs: Mapping[str, StoredRun]) -> dict[str, dict[str, Estimate]]:
    """The metrics over all questions: by metric and run. A run has the last part of its path as its name, if no other
    has the same."""
    last = [Path(name).name for name in runs]
    names = last if len(set(last)) == len(last) else list(runs)
    found = {name: estimates(run.outcomes)[ALL] for name, run in zip(names, runs.values(), strict=True)}
    metrics = next(iter(found.values()))
    return {metric: {name: values[metric] for name, values in found.items()} for metric in metrics}


def _panel(axes: Any, title: str, values: Mapping[str, Estimate]) -> None:
    for place, (color, one) in enumerate(zip(_cycled(len(values)), values.values(), strict=True)):
        axes.plot([one.low, one.high], [place, place], color=color, linewidth=2)
        axes.plot([one.value], [place], marker="o", color=color)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color=_GRID)
    axes.spines[["top", "right"]].set_visible(False)


def _cycled(count: int) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(count)]
