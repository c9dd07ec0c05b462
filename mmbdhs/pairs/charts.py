"""Charts as shapes, which the page's template draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmbdhs.pairs.figures import Figures

WIDTH, HEIGHT = 360, 234
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 346, 30, 188
_MOST_BINS = 30


@dataclass(frozen=True)
class Bar:
    """A rectangle of a chart, with what it says."""

    x: float
    y: float
    width: float
    height: float
    text: str
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """Shapes in a box of WIDTH x HEIGHT.

    title, description: what it shows, and the same in words with figures.
    x_label, y_label: of the axes.
    bars: of the first series. outline: the second series, as the path of a step line; empty for none.
    legend: names of the two series.
    x_ticks, y_ticks: (position, text).
    marker: (position, text) of a vertical line; None for none.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    bars: list[Bar]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    outline: str = ""
    legend: tuple[str, str] | None = None
    marker: tuple[float, str] | None = None

    left, right, top, bottom, width, height = _LEFT, _RIGHT, _TOP, _BOTTOM, WIDTH, HEIGHT


def accepted_chart(figures: Figures, iterations: int, last_unguided: bool) -> Chart:
    """The share of responses that differ from their reference after 1 … N iterations (Figure 10 of the paper).

    iterations: N.
    last_unguided: whether the last one wrote responses without the reference.
    """
    shares, slot = figures.accepted(iterations), (_RIGHT - _LEFT) / iterations
    bars = [
        Bar(
            _x((number + 0.14) / iterations),
            _y(share),
            slot * 0.72,
            _BOTTOM - _y(share),
            f"after {number + 1} of {iterations} iterations: {share:.1%}",
            f"{share:.0%}" if iterations <= 8 else "",
        )
        for number, share in enumerate(shares)
    ]
    return Chart(
        "Accepted by iteration",
        "Share of the responses that are not too similar to the reference, those that a filter left out included: "
        + ", ".join(f"{share:.1%} after {number}" for number, share in enumerate(shares, 1)),
        f"iterations ({iterations} is unguided)" if last_unguided and iterations > 1 else "iterations",
        "share of the responses",
        bars,
        [(_x((n + 0.5) / iterations), str(n + 1)) for n in range(0, iterations, math.ceil(iterations / 10))],
        [(_y(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)],
    )


def similarity_chart(figures: Figures, threshold: float) -> Chart:
    """How similar responses and references are, with the threshold ε_s."""
    found = figures.of("similarity")
    lowest = min(*found, 90, math.floor(100 * threshold))
    step = _nice(100 - lowest, 2 * _MOST_BINS)  # mostly a hundredth, so that the threshold is between two bars
    first = step * (lowest // step)
    counts = _histogram(found, first, step, 100)
    return Chart(
        "Similarity to the reference",
        f"Number of pairs by cosine similarity, median about {figures.quantile('similarity', 0.5) / 100:.2f}; "
        f"a response is drawn again from {threshold:g} on",
        "cosine similarity",
        "pairs",
        _bars(counts, max(counts), lambda n: f"from {(first + n * step) / 100:.2f}"),
        _x_ticks(first, 100, lambda at: f"{at / 100:.2f}"),
        _count_ticks(max(counts)),
        marker=(_x((threshold * 100 - first) / (100 - first)), f"threshold {threshold:g}"),
    )


def length_chart(figures: Figures) -> Chart:
    """How long chosen and rejected responses are."""
    names = "chosen_words", "rejected_words"
    usual = max(9, *(int(figures.quantile(name, 0.99)) for name in names))  # an endless one would flatten the others
    step = _nice(usual + 1, _MOST_BINS)
    end = step * (usual // step + 1)
    chosen, rejected = (_histogram(figures.of(name), 0, step, end) for name in names)
    longer = max(max(figures.of(name)) for name in names) >= end
    most = max(*chosen, *rejected)
    medians = [int(figures.quantile(name, 0.5)) for name in names]
    return Chart(
        "Length of the responses",
        f"Number of responses by their words; median {medians[0]} chosen, {medians[1]} rejected",
        "words (longer responses are in the last bar)" if longer else "words",
        "responses",
        _bars(chosen, most, lambda n: f"from {n * step} words, chosen"),
        _x_ticks(0, end, str),
        _count_ticks(most),
        outline=_outline(rejected, most),
        legend=("chosen", "rejected"),
    )


def _x(share: float) -> float:
    return round(_LEFT + share * (_RIGHT - _LEFT), 2)


def _y(share: float) -> float:
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 2)


def _nice(span: float, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20 … of which at most about `most` make up the span."""
    steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return next(step for step in steps if span / step <= most)


def _histogram(counts: Mapping[int, int], first: int, step: int, end: int) -> list[int]:
    bins = [0] * ((end - first) // step)
    for value, number in counts.items():  # a similarity of 1 belongs to the last bin
        bins[min((value - first) // step, len(bins) - 1)] += number
    return bins


def _bars(counts: Sequence[int], most: int, name: Callable[[int], str]) -> list[Bar]:
    top, width = _top(most), (_RIGHT - _LEFT) / len(counts)
    return [
        Bar(
            _x(n / len(counts)),
            _y(number / top),
            max(width - 1, 0.5),
            _BOTTOM - _y(number / top),
            f"{name(n)}: {number:,}",
        )
        for n, number in enumerate(counts)
    ]


def _outline(counts: Sequence[int], most: int) -> str:
    """The step line over a histogram."""
    steps = [f"V{_y(number / _top(most))}H{_x((n + 1) / len(counts))}" for n, number in enumerate(counts)]
    return f"M{_LEFT} {_BOTTOM}{''.join(steps)}V{_BOTTOM}"


def _top(most: int) -> int:
    """The count at the top of a chart: a whole number of ticks."""
    step = _nice(max(most, 1), 4)
    return step * math.ceil(max(most, 1) / step)


def _count_ticks(most: int) -> list[tuple[float, str]]:
    top = _top(most)
    return [(_y(at / top), f"{at:,}") for at in range(0, top + 1, _nice(max(most, 1), 4))]


def _x_ticks(first: int, end: int, name: Callable[[int], str]) -> list[tuple[float, str]]:
    step = _nice(end - first, 6)
    begin = step * math.ceil(first / step)
    return [(_x((at - first) / (end - first)), name(at)) for at in range(begin, end + 1, step)]
