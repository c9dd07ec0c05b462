"""The picture of `tune`: shares accepted, similarity by iteration, and what a similarity model misses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbdhs.data import whole_file

if TYPE_CHECKING:
    from mmbdhs.pairs.tune_report import TuneReport

_COLORS = ("#2471a3", "#c0392b", "#1e8449", "#b9770e", "#6c3483", "#5d6d7e")
_GREY, _GRID = "#2c3e50", "#e5e8e8"


def require_matplotlib() -> None:
    """Raise ImportError that names the extra if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("The picture of tune needs the extra 'tune': pip install 'mmbdhs[tune]'") from error


def draw(report: TuneReport, path: Path) -> None:
    """Save a PNG with a row for each similarity model: the share accepted by iteration with the recommended ε_s,
    the similarity by iteration, and the share accepted and the flips missed by ε_s."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(setting.similarity for setting in report.settings))
    figure = Figure(figsize=(14, 4.2 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for name, axes in zip(names, figure.subplots(len(names), 3, squeeze=False), strict=True):
        _accepted(axes[0], report, name)
        _similarity(axes[1], report, name)
        _thresholds(axes[2], report, name)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def _accepted(axes: Any, report: TuneReport, name: str) -> None:
    threshold = report.recommendation.similarity_threshold
    setting = next(one for one in report.settings if one == (name, threshold))
    numbers = range(1, report.iterations + 1)
    for color, mask in _colored(report):
        shares = report.accepted(mask, setting)
        axes.plot(numbers, [share.value for share in shares], marker="o", color=color, label=f"ρ_th = {mask:g}")
        axes.fill_between(numbers, [s.low for s in shares], [s.high for s in shares], color=color, alpha=0.1)
    axes.set_ylim(0, 1.02)
    _finish(axes, f"accepted by {name} with ε_s = {threshold:g}", "iteration", numbers)
    axes.legend(frameon=False)


def _similarity(axes: Any, report: TuneReport, name: str) -> None:
    """Medians, and the middle 90% as a band."""
    for color, mask in _colored(report):
        curve = [row for row in report.curves if (row["mask_threshold"], row["similarity"]) == (mask, name)]
        numbers = [row["iteration"] for row in curve]
        axes.plot(numbers, [row["0.5"] for row in curve], marker="o", color=color)
        axes.fill_between(
            numbers, [row["0.05"] for row in curve], [row["0.95"] for row in curve], color=color, alpha=0.1
        )
    axes.axhline(report.recommendation.similarity_threshold, color=_GREY, linestyle="--", linewidth=1)
    _finish(axes, f"similarity by {name}: median, middle 90%", "iteration", range(1, report.iterations + 1))


def _thresholds(axes: Any, report: TuneReport, name: str) -> None:
    settings = [one for one in report.settings if one.similarity == name]
    places = [one.similarity_threshold for one in settings]
    last = report.guided_iterations
    for color, mask in _colored(report):
        axes.plot(places, [report.accepted(mask, one)[last - 1].value for one in settings], marker="o", color=color)
    for label, style, share in (
        ("flips missed", "--", report.missed_flips),
        ("restatements accepted", ":", report.accepted_restatements),
    ):
        if share(settings[0]).count:
            axes.plot(places, [share(one).value for one in settings], style, color=_GREY, label=label)
            axes.legend(frameon=False)
    axes.set_ylim(0, 1.02)
    _finish(axes, f"accepted after iteration {last} by {name}", "ε_s", places)


def _colored(report: TuneReport) -> list[tuple[str, float]]:
    return [(_COLORS[number % len(_COLORS)], mask) for number, mask in enumerate(report.mask_thresholds)]


def _finish(axes: Any, title: str, label: str, ticks: Sequence[float]) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(label)
    axes.set_xticks(list(ticks))
    axes.grid(axis="y", color=_GRID)
    axes.spines[["top", "right"]].set_visible(False)
