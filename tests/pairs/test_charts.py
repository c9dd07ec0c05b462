"""The charts of the page, against figures worked out by hand."""

from __future__ import annotations

import pytest

from mmbdhs.pairs import Figures
from mmbdhs.pairs.charts import Chart, accepted_chart, length_chart, similarity_chart


def counted(**counts: dict[int, int]) -> Figures:
    return Figures((name, value, count) for name, one in counts.items() for value, count in one.items())


def filled(chart: Chart) -> list[str]:
    return [bar.text for bar in chart.bars if bar.height]


def test_acceptance_is_cumulative() -> None:
    figures = counted(accepted={0: 2, 1: 4, 2: 1, 3: 1}, guided={0: 2, 1: 6})
    chart = accepted_chart(figures, 3, last_unguided=True)
    shares = [bar.height / (chart.bottom - chart.top) for bar in chart.bars]
    assert shares == pytest.approx([4 / 8, 5 / 8, 6 / 8], abs=1e-3)
    assert [bar.label for bar in chart.bars] == ["50%", "62%", "75%"]
    assert chart.description.endswith("50.0% after 1, 62.5% after 2, 75.0% after 3")
    assert chart.x_label == "iterations (3 is unguided)"
    assert accepted_chart(figures, 3, last_unguided=False).x_label == "iterations"


def test_similarities_are_on_their_side_of_the_threshold() -> None:
    chart = similarity_chart(counted(similarity={90: 1, 96: 2, 97: 1, 100: 3}), 0.97)
    bars = [bar for bar in chart.bars if bar.height]
    position, text = chart.marker
    assert filled(chart) == ["from 0.90: 1", "from 0.96: 2", "from 0.97: 1", "from 0.99: 3"]
    assert text == "threshold 0.97" and "median about 0.97" in chart.description
    assert bars[1].x + bars[1].width <= position <= bars[2].x + 0.01


def test_a_low_threshold_and_opposite_responses_are_inside_the_chart() -> None:
    chart = similarity_chart(counted(similarity={-37: 1, 95: 1}), 0.2)
    assert filled(chart) == ["from -0.40: 1", "from 0.95: 1"]
    assert chart.bars[0].x < chart.marker[0] < (chart.left + chart.right) / 2


def test_lengths_have_a_bar_and_a_step_for_each_number_of_words() -> None:
    chart = length_chart(counted(chosen_words={3: 6, 12: 1, 0: 1}, rejected_words={4: 5, 3: 1, 9: 2}))
    assert filled(chart) == ["from 0 words, chosen: 1", "from 3 words, chosen: 6", "from 12 words, chosen: 1"]
    assert "median 3 chosen, 4 rejected" in chart.description and chart.x_label == "words"
    assert chart.outline.count("H") == len(chart.bars) == 13


def test_an_endless_response_is_in_the_last_bar() -> None:
    chart = length_chart(counted(chosen_words={30: 199, 9000: 1}, rejected_words={1: 200}))
    assert filled(chart) == ["from 30 words, chosen: 200"]
    assert chart.x_label == "words (longer responses are in the last bar)"
