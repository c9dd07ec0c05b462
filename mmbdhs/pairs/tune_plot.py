"""The picture of `tune`: shares accepted, similarity by iteration, and what a similarity model misses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbdhs.runs import drawn_figure, finish_panel, plot_color, require_matplotlib

if TYPE_CHECKING:
    from mmbdhs.pairs.tune_report import TuneReport

_GREY = "#2c3e50"
PICTURE = "The picture of tune"


def draw(report: TuneReport, path: Path) -> None:
    """Save a PNG with a row for each similarity model: the share accepted by iteration with the recommended ε_s,
    the similarity by iteration, and the share accepted and the flips missed by ε_s."""
    require_matplotlib(PICTURE)
    names = list(dict.fromkeys(setting.similarity for setting in report.settings))
    with drawn_figure(path, 14, 4.2 * len(names)) as figure:
        for name, axes in zip(names, figure.subplots(len(names), 3, squeeze=False), strict=True):
            _accepted(axes[0], report, name)
            _similarity(axes[1], report, name)
            _thresholds(axes[2], report, name)


def _accepted(axes: Any, report: TuneReport, name: str) -> None:
    threshold = report.recommendation.similarity_threshold
    setting = next(one for one in report.settings if one == (name, threshold))
    numbers = range(1, report.iterations + 1)
    for shade, mask in _colored(report):
        shares = report.accepted(mask, setting)
        axes.plot(numbers, [share.value for share in shares], marker="o", color=shade, label=f"ρ_th = {mask:g}")
        axes.fill_between(numbers, [s.low for s in shares], [s.high for s in shares], color=shade, alpha=0.1)
    axes.set_ylim(0, 1.02)
    _finish(axes, f"accepted by {name} with ε_s = {threshold:g}", "iteration", numbers)
    axes.legend(frameon=False)


def _similarity(axes: Any, report: TuneReport, name: str) -> None:
    """Medians, and the middle 90% as a band."""
    for shade, mask in _colored(report):
        curve = [row for row in report.curves if (row["mask_threshold"], row["similarity"]) == (mask, name)]
        numbers = [row["iteration"] for row in curve]
        axes.plot(numbers, [row["0.5"] for row in curve], marker="o", color=shade)
        axes.fill_between(
            numbers, [row["0.05"] for row in curve], [row["0.95"] for row in curve], color=shade, alpha=0.1
        )
    axes.axhline(report.recommendation.similarity_threshold, color=_GREY, linestyle="--", linewidth=1)
    _finish(axes, f"similarity by {name}: median, middle 90%", "iteration", range(1, report.iterations + 1))


def _thresholds(axes: Any, report: TuneReport, name: str) -> None:
    settings = [one for one in report.settings if one.similarity == name]
    places = [one.similarity_threshold for one in settings]
    last = report.guided_iterations
    for shade, mask in _colored(report):
        axes.plot(places, [report.accepted(mask, one)[last - 1].value for one in settings], marker="o", color=shade)
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
    return [(plot_color(number), mask) for number, mask in enumerate(report.mask_thresholds)]


def _finish(axes: Any, title: str, label: str, ticks: Sequence[float]) -> None:
    axes.set_xlabel(label)
    axes.set_xticks(list(ticks))
    finish_panel(axes, title, grid="y")
