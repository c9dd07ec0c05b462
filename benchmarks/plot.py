"""A line plot with Pillow, which the library needs anyway: named lines over a few places, logarithmic upwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLORS = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#6c3483", "#5d6d7e")
INK, GRID, PAPER = "#2c3e50", "#e5e8e8", "#ffffff"
SIZE, FRAME, FINE = (760, 420), (70, 50, 600, 370), 3  # drawn FINE times as large, then scaled down


@dataclass(frozen=True)
class Line:
    """points: (place, value > 0); the first line is drawn bold."""

    name: str
    points: Sequence[tuple[float, float]]


def line_plot(path: Path, title: str, lines: list[Line]) -> None:
    """Save a PNG. Places are the x values of the first line, evenly spaced."""
    canvas = _Canvas([x for x, _ in lines[0].points], [y for line in lines for _, y in line.points])
    canvas.text((FRAME[0], 22), title, 15, "lm")
    canvas.axes()
    for number, line in enumerate(lines):
        canvas.line(line, COLORS[number % len(COLORS)], bold=number == 0)
    canvas.names(lines)
    canvas.image.resize(SIZE, Image.LANCZOS).save(path, optimize=True)


class _Canvas:
    def __init__(self, places: list[float], values: list[float]) -> None:
        self.places = places
        self.low, self.high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        self.high = max(self.high, self.low + 1)
        self.image = Image.new("RGB", (SIZE[0] * FINE, SIZE[1] * FINE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def at(self, place: float, value: float) -> tuple[float, float]:
        left, top, right, bottom = FRAME
        x = left + (right - left) * (self.places.index(place) + 0.5) / len(self.places)
        return x, bottom - (bottom - top) * (math.log10(value) - self.low) / (self.high - self.low)

    def axes(self) -> None:
        left, top, right, bottom = FRAME
        for power in range(self.low, self.high + 1):
            y = self.at(self.places[0], 10.0**power)[1]
            self.stroke([(left, y), (right, y)], GRID, 1)
            self.text((left - 8, y), f"{10.0**power:g}", 12, "rm")
        self.stroke([(left, top), (left, bottom), (right, bottom)], INK, 1)
        for place in self.places:
            self.text((self.at(place, 1)[0], bottom + 14), f"{place:g}", 12, "mm")

    def line(self, line: Line, color: str, bold: bool) -> None:
        points = [self.at(*point) for point in line.points]
        self.stroke(points, color, 3.5 if bold else 2)
        radius = (4.5 if bold else 3.5) * FINE
        for x, y in points:
            self.draw.ellipse((x * FINE - radius, y * FINE - radius, x * FINE + radius, y * FINE + radius), fill=color)

    def names(self, lines: list[Line]) -> None:
        """Each name beside the end of its line, moved down where it would touch the one above."""
        ends = [(self.at(*line.points[-1])[1], number) for number, line in enumerate(lines)]
        y = -math.inf
        for end, number in sorted(ends):
            y = max(end, y + 17)
            self.text((FRAME[2] + 8, y), lines[number].name, 14, "lm", COLORS[number % len(COLORS)])

    def stroke(self, points: list[tuple[float, float]], color: str, width: float) -> None:
        self.draw.line([(x * FINE, y * FINE) for x, y in points], color, round(width * FINE), joint="curve")

    def text(self, place: tuple[float, float], words: str, size: int, anchor: str, color: str = INK) -> None:
        font = ImageFont.load_default(size * FINE)
        self.draw.text((place[0] * FINE, place[1] * FINE), words, color, font, anchor)
