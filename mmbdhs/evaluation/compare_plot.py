"""The picture of several runs: every metric with its 95% interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmbdhs.evaluation.compare import StoredRun
from mmbdhs.evaluation.intervals import Estimate
from mmbdhs.evaluation.scores import ALL, estimates
from mmbdhs.runs import drawn_figure, finish_panel, plot_color, require_matplotlib


def draw(benchmarks: Mapping[str, Mapping[str, StoredRun]], path: Path) -> None:
    """Save a PNG with a panel for each metric of each benchmark, in which each run is a row with its interval.

    benchmarks: the runs by benchmark and name.

    Raises ImportError that names the extra without matplotlib.
    """
    require_matplotlib("plot:")
    panels = {
        f"{name}: {metric}": values for name, runs in benchmarks.items() for metric, values in _by_metric(runs).items()
    }
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    runs = max(len(values) for values in panels.values())
    with drawn_figure(path, 4.6 * columns, rows * (0.9 + 0.32 * runs)) as figure:
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, values) in zip(places, panels.items(), strict=False):
            _panel(axes, title, values)
        for axes in places[len(panels) :]:
            axes.set_axis_off()


def _by_metric(runs: Mapping[str, StoredRun]) -> dict[str, dict[str, Estimate]]:
    """The metrics over all questions: by metric and run. A run has the last part of its path as its name, if no other
    has the same."""
    last = [Path(name).name for name in runs]
    names = last if len(set(last)) == len(last) else list(runs)
    found = {name: estimates(run.outcomes)[ALL] for name, run in zip(names, runs.values(), strict=True)}
    metrics = next(iter(found.values()))
    return {metric: {name: values[metric] for name, values in found.items()} for metric in metrics}


def _panel(axes: Any, title: str, values: Mapping[str, Estimate]) -> None:
    for place, one in enumerate(values.values()):
        axes.plot([one.low, one.high], [place, place], color=plot_color(place), linewidth=2)
        axes.plot([one.value], [place], marker="o", color=plot_color(place))
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    finish_panel(axes, title, grid="x")
