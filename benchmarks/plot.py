"""Line and interval plots with Pillow, which the library needs anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLORS = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#6c3483", "#5d6d7e", "#d6478f", "#16a3b0")
INK, GRID, PAPER = "#2c3e50", "#e5e8e8", "#ffffff"
WIDTH, HEIGHT, FRAME = 760, 420, (70, 50, 600, 370)  # pixels of the picture and its plot: left, top, right, bottom
FINE = 3  # drawn so many times as large, then scaled down
NAME_STEP, ROW_STEP = 17, 24  # pixels from one line of text to the next


@dataclass(frozen=True)
class Line:
    """points: (place, value); the first line is drawn bold."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class IntervalRow:
    """A share in [0, 1] and its 95% interval; bold rows stand out."""

    name: str
    value: float
    low: float
    high: float
    bold: bool = False


@dataclass(frozen=True)
class Scale:
    """An axis. position: of a value, 0 at the axis's start and 1 at its end. ticks: labels by value."""

    position: Callable[[float], float]
    ticks: Mapping[float, str]

    def at(self, value: float) -> float:
        position = self.position(value)
        if not 0 <= position <= 1:
            raise ValueError(f"value: needs one on the axis ({', '.join(self.ticks.values())}), got {value}")
        return position


def logarithmic(values: Iterable[float]) -> Scale:
    """Powers of ten around positive values."""
    logs = [math.log10(value) for value in values]
    low = math.floor(min(logs))
    high = max(math.ceil(max(logs)), low + 1)
    ticks = {10.0**power: f"{10.0**power:g}" for power in range(low, high + 1)}
    return Scale(lambda value: (math.log10(value) - low) / (high - low), ticks)


def percent(high: float = 1.0) -> Scale:
    """From 0 to the first of at most five steps that is no lower than the share `high`."""
    if not 0 < high <= 1:
        raise ValueError(f"high: needs a share in (0, 1], got {high}")
    step = next(step for step in (1, 2, 5, 10, 20) if high <= step / 20)
    top = step * math.ceil(round(100 * high / step, 9))  # rounded: 100 · 0.07 / 1 is a little over 7
    return Scale(lambda value: 100 * value / top, {tick / 100: f"{tick}%" for tick in range(0, top + 1, step)})


def line_plot(path: Path, title: str, lines: Sequence[Line], scale: Scale | None = None) -> None:
    """Save a PNG of named lines. Places are the x values of the first line, evenly spaced.

    scale: upwards; logarithmic if None. Raises ValueError for values off the scale, and for text that does not fit."""
    values = [y for line in lines for _, y in line.points]
    plot = _LinePlot([x for x, _ in lines[0].points], scale or logarithmic(values))
    plot.text((FRAME[0], 22), title, 15, "lm")
    plot.axes()
    for number, line in enumerate(lines):
        plot.line(line, COLORS[number % len(COLORS)], bold=number == 0)
    plot.names(lines)
    plot.save(path)


def interval_plot(
    path: Path, title: str, rows: Sequence[IntervalRow], reference: float | None = None, label: str = ""
) -> None:
    """Save a PNG with one row per share: its name, a dot, its interval, its value in per cent.

    reference: share that a dashed line marks. label: what the axis shows. Raises ValueError as `line_plot` does."""
    plot = _IntervalPlot(rows, percent(max([row.high for row in rows] + [reference or 0])))
    plot.text((16, 22), title, 15, "lm")
    plot.axes(label)
    if reference is not None:
        plot.reference(reference)
    for number, row in enumerate(rows):
        plot.row(number, row)
    plot.save(path)


class _Canvas:
    """Draws at places in pixels of the picture that is saved."""

    def __init__(self, height: int) -> None:
        self.size = WIDTH, height
        self.image = Image.new("RGB", (WIDTH * FINE, height * FINE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def stroke(self, points: Sequence[tuple[float, float]], color: str, width: float) -> None:
        self.draw.line([(x * FINE, y * FINE) for x, y in points], color, round(width * FINE), joint="curve")

    def dot(self, place: tuple[float, float], color: str, radius: float) -> None:
        x, y, radius = place[0] * FINE, place[1] * FINE, radius * FINE
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def text(self, place: tuple[float, float], words: str, size: int, anchor: str, color: str = INK) -> None:
        if not words.isascii():
            raise ValueError(f"text: needs ASCII, which is what Pillow's own font has for sure, got {words!r}")
        font = ImageFont.load_default(size * FINE)
        at = place[0] * FINE, place[1] * FINE
        left, top, right, bottom = self.draw.textbbox(at, words, font, anchor)
        if left < 0 or top < 0 or right > self.image.width or bottom > self.image.height:
            raise ValueError(f"text: needs to lie inside the picture, got {words!r}")
        self.draw.text(at, words, color, font, anchor)

    def save(self, path: Path) -> None:
        self.image.resize(self.size, Image.LANCZOS).save(path, optimize=True)


class _LinePlot(_Canvas):
    def __init__(self, places: list[float], scale: Scale) -> None:
        super().__init__(HEIGHT)
        self.places, self.scale = places, scale

    def at(self, place: float, value: float) -> tuple[float, float]:
        left, top, right, bottom = FRAME
        x = left + (right - left) * (self.places.index(place) + 0.5) / len(self.places)
        return x, bottom - (bottom - top) * self.scale.at(value)

    def axes(self) -> None:
        left, top, right, bottom = FRAME
        for value, label in self.scale.ticks.items():
            y = self.at(self.places[0], value)[1]
            self.stroke([(left, y), (right, y)], GRID, 1)
            self.text((left - 8, y), label, 12, "rm")
        self.stroke([(left, top), (left, bottom), (right, bottom)], INK, 1)
        for place in self.places:
            self.text((self.at(place, next(iter(self.scale.ticks)))[0], bottom + 14), f"{place:g}", 12, "mm")

    def line(self, line: Line, color: str, bold: bool) -> None:
        points = [self.at(*point) for point in line.points]
        self.stroke(points, color, 3.5 if bold else 2)
        for point in points:
            self.dot(point, color, 4.5 if bold else 3.5)

    def names(self, lines: Sequence[Line]) -> None:
        """Each name beside the end of its line, or as near as the other names let it."""
        ends = sorted((self.at(*line.points[-1])[1], number) for number, line in enumerate(lines))
        heights = spread([end for end, _ in ends], NAME_STEP, FRAME[3])
        for y, (_, number) in zip(heights, ends, strict=True):
            self.text((FRAME[2] + 8, y), lines[number].name, 14, "lm", COLORS[number % len(COLORS)])


def spread(heights: Sequence[float], step: float, bottom: float) -> list[float]:
    """Rising heights moved down until each is `step` below the one before, then up where they would pass `bottom`."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + step) if moved else height)
    return [min(height, bottom - step * (len(moved) - 1 - number)) for number, height in enumerate(moved)]


class _IntervalPlot(_Canvas):
    def __init__(self, rows: Sequence[IntervalRow], scale: Scale) -> None:
        super().__init__(50 + ROW_STEP * len(rows) + 50)
        font = ImageFont.load_default(14)
        self.left, self.right = 34 + max(font.getlength(row.name) for row in rows), WIDTH - 80
        self.top, self.bottom, self.scale = 46, self.size[1] - 50, scale

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.scale.at(value)

    def axes(self, label: str) -> None:
        for value, words in self.scale.ticks.items():
            x = self.x(value)
            self.stroke([(x, self.top), (x, self.bottom)], GRID, 1)
            self.text((x, self.bottom + 14), words, 12, "mm")
        self.stroke([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], INK, 1)
        self.text(((self.left + self.right) / 2, self.bottom + 34), label, 12, "mm")

    def reference(self, value: float) -> None:
        for y in range(self.top, self.bottom, 8):
            self.stroke([(self.x(value), y), (self.x(value), min(y + 4, self.bottom))], INK, 1)

    def row(self, number: int, row: IntervalRow) -> None:
        y = self.top + 4 + ROW_STEP * (number + 0.5)
        color, words = (COLORS[0], COLORS[0]) if row.bold else (COLORS[1], INK)
        self.text((self.left - 14, y), row.name, 14, "rm", words)
        self.stroke([(self.x(row.low), y), (self.x(row.high), y)], color, 3 if row.bold else 2)
        self.dot((self.x(row.value), y), color, 5 if row.bold else 4)
        self.text((self.right + 14, y), f"{row.value:.1%}", 14, "lm", words)
