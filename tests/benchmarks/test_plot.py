"""The benchmarks' plots show the numbers that they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plot
import pytest
from PIL import Image


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every plot that is saved."""
    seen: list[Any] = []
    save = plot._save
    monkeypatch.setattr(plot, "_save", lambda figure, axes, *others: (seen.append(axes), save(figure, axes, *others)))
    return seen


def test_lines_are_drawn_through_their_points(tmp_path: Path, axes: list[Any]) -> None:
    lines = [plot.Line("a", [(1, 0.2), (8, 30.0), (64, 5.0)]), plot.Line("b", [(8, 2.0)])]
    plot.line_plot(tmp_path / "plot.png", "title", lines)
    drawn = axes[0].get_lines()
    assert [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in drawn] == [
        ("a", [0, 1, 2], [0.2, 30.0, 5.0]),
        ("b", [1], [2.0]),
    ]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1", "8", "64"]
    assert axes[0].get_yscale() == "log" and Image.open(tmp_path / "plot.png").width > 500


def test_shares_have_an_axis_of_per_cent(tmp_path: Path, axes: list[Any]) -> None:
    plot.line_plot(tmp_path / "plot.png", "title", [plot.Line("a", [(1, 0.25), (2, 0.5)])], shares=True)
    assert axes[0].get_ylim() == (0, 1) and axes[0].yaxis.get_major_formatter()(0.25) == "25%"


def test_intervals_share_one_axis(tmp_path: Path, axes: list[Any]) -> None:
    rows = [plot.IntervalRow("low", 0.1, 0.0, 0.2), plot.IntervalRow("high", 0.3, 0.2, 0.4, bold=True)]
    plot.interval_plot(tmp_path / "plot.png", "two", rows, reference=0.2, label="share")
    spans = [list(line.get_xdata()) for line in axes[0].get_lines()]
    assert spans == [[0.0, 0.2], [0.1], [0.2, 0.4], [0.3], [0.2, 0.2]]
    assert [text.get_text() for text in axes[0].texts] == ["10.0%", "30.0%"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["low", "high"]
