"""The benchmarks' plots: axes and places worked by hand, and found again in the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plot
import pytest
from PIL import Image, ImageColor


@pytest.mark.parametrize(
    ("high", "labels"),
    [
        (1.0, ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (0.37, ["0%", "10%", "20%", "30%", "40%"]),
        (0.5, ["0%", "10%", "20%", "30%", "40%", "50%"]),
        (0.03, ["0%", "1%", "2%", "3%"]),
    ],
)
def test_percent_ends_at_the_first_step_that_is_no_lower(high: float, labels: list[str]) -> None:
    scale = plot.percent(high)
    assert list(scale.ticks.values()) == labels
    assert [scale.at(tick) for tick in scale.ticks] == pytest.approx(np.linspace(0, 1, len(labels)))


def test_logarithmic_spans_whole_powers_of_ten() -> None:
    scale = plot.logarithmic([0.2, 30])
    assert list(scale.ticks.values()) == ["0.1", "1", "10", "100"]
    assert [scale.at(value) for value in (0.1, 1, 100)] == pytest.approx([0, 1 / 3, 1])


@pytest.mark.parametrize(
    ("heights", "spread"),
    [
        ([10, 50, 90], [10, 50, 90]),
        ([10, 12, 40], [10, 20, 40]),  # down, away from the one above
        ([50, 95, 96], [50, 90, 100]),  # up again, away from the bottom
        ([98, 99, 100], [80, 90, 100]),
    ],
)
def test_names_neither_touch_nor_pass_the_bottom(heights: list[float], spread: list[float]) -> None:
    assert plot.spread(heights, step=10, bottom=100) == spread


def test_line_lies_where_its_shares_say(tmp_path: Path) -> None:
    plot.line_plot(tmp_path / "plot.png", "flat", [plot.Line("a", [(1, 0.25), (2, 0.25)])], plot.percent())
    left, top, right, bottom = plot.FRAME
    y, x = np.nonzero(_drawn(tmp_path / "plot.png", plot.COLORS[0])[:, :right])
    assert y.mean() == pytest.approx(bottom - 0.25 * (bottom - top), abs=1)
    assert (x.min() + x.max()) / 2 == pytest.approx((left + right) / 2, abs=1)


def test_intervals_share_one_axis(tmp_path: Path) -> None:
    """[0, 20%] ends where [20%, 40%] begins, and 40% is the axis's end."""
    rows = [plot.IntervalRow("low", 0.1, 0.0, 0.2), plot.IntervalRow("high", 0.3, 0.2, 0.4)]
    plot.interval_plot(tmp_path / "plot.png", "two", rows, reference=0.2, label="share")
    drawn = _drawn(tmp_path / "plot.png", plot.COLORS[1])
    heights = np.nonzero(drawn.any(1))[0]
    middle = int(heights.min() + heights.max()) // 2
    first, second = (np.nonzero(part.any(0))[0] for part in (drawn[:middle], drawn[middle:]))
    assert first.max() == pytest.approx(second.min(), abs=3)
    assert np.ptp(first) == pytest.approx(np.ptp(second), abs=3)
    assert second.max() == pytest.approx(plot.WIDTH - 80, abs=3)


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    file, row = tmp_path / "plot.png", plot.IntervalRow("name", 0.1, 0.0, 0.2)
    with pytest.raises(ValueError, match=r"value: needs one on the axis .*100%\), got 1.2"):
        plot.line_plot(file, "title", [plot.Line("a", [(1, 1.2)])], plot.percent())
    with pytest.raises(ValueError, match=r"high: needs a share in \(0, 1\], got 12"):
        plot.interval_plot(file, "title", [plot.IntervalRow("per cent", 10, 8, 12)])
    with pytest.raises(ValueError, match="text: needs ASCII"):
        plot.interval_plot(file, "\N{GREEK SMALL LETTER RHO}", [row])
    with pytest.raises(ValueError, match="text: needs to lie inside the picture"):
        plot.interval_plot(file, "far too long " * 20, [row])
    assert not file.exists()


def _drawn(file: Path, color: str) -> np.ndarray:
    """bool [height, width]: where a picture has a colour."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    return np.abs(pixels - ImageColor.getrgb(color)).max(2) < 40
