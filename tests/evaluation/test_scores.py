"""Metrics of outcomes: their intervals against scipy and a simulation, their groups, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmbdhs.evaluation.benchmark import Outcome
from mmbdhs.evaluation.intervals import quotient, ratio
from mmbdhs.evaluation.scores import estimates


def test_a_mean_of_ratings_has_students_interval() -> None:
    values = [6, 0, 3, 5, 2]
    found = quotient(values, [1] * 5)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high, found.count) == pytest.approx((3.2, low, high, 5))


def test_a_quotient_of_clusters_worked_by_hand() -> None:
    # Clusters a: y 7, x 3; b: y 2, x 3. R = 9/6, residuals 2.5 and −2.5, V = 2/1 · 12.5 / 36, t_1 = 12.7062.
    found = quotient([5, 2, 2], [1, 2, 3], ["a", "a", "b"])
    half = 12.7062 * math.sqrt(25 / 36)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half), abs=1e-3)


def test_quotients_that_say_nothing() -> None:
    alone = quotient([5, 3], [1, 1], ["a", "a"])
    assert (alone.value, alone.low, alone.high) == (4, -math.inf, math.inf)
    assert math.isnan(quotient([1, 1], [-1, 1]).value)
    with pytest.raises(ValueError, match="numerators, denominators: need finite numbers"):
        quotient([math.nan], [1])


def test_intervals_of_clustered_quotients_cover_as_promised() -> None:
    """2,000 draws of 40 images with 3 questions, reference scores 6 to 10 and an image's own quality. If intervals
    cover in 94% of draws or more, 1,842 hits or fewer have a chance below 3e-4; blind to images they cover in about
    80%. The true ratio is 0.6, because quality and reference are independent."""
    rng, clusters = np.random.default_rng(11), np.repeat(np.arange(40), 3)
    seeing = blind = 0
    for _ in range(2000):
        x = rng.integers(6, 11, 120).astype(float)
        y = x * (0.6 + 0.3 * rng.standard_normal(40)[clusters] + 0.2 * rng.standard_normal(120))
        for_images, alone = quotient(y, x, clusters), quotient(y, x)
        seeing += for_images.low <= 0.6 <= for_images.high
        blind += alone.low <= 0.6 <= alone.high
    assert seeing > 1842 > blind


OUTCOMES = [
    Outcome("1", "a", ("red",), {"accuracy": (1, 1), "score": (5, 1)}),
    Outcome("2", "a", ("blue", "odd"), {"accuracy": (0, 1), "score": (1, 1)}),
    Outcome("3", "b", ("blue",), {"accuracy": (1, 1), "score": (0, 1)}),
]


def test_each_group_has_its_metrics_with_the_interval_of_its_kind() -> None:
    found = estimates(OUTCOMES)
    assert list(found) == ["all", "blue", "odd", "red"]
    assert found["all"]["accuracy"] == ratio([1, 0, 1], [1, 1, 1], ["a", "a", "b"])
    assert found["all"]["score"] == quotient([5, 1, 0], [1, 1, 1], ["a", "a", "b"])
    # A group's ratings of 0 and 1 are not taken for shares.
    assert found["blue"]["score"] == quotient([1, 0], [1, 1], ["a", "b"])


@settings(deadline=None, max_examples=50)
@given(st.permutations(OUTCOMES))
def test_the_order_changes_nothing(outcomes: list[Outcome]) -> None:
    assert estimates(outcomes) == estimates(OUTCOMES)


def test_what_is_no_set_of_outcomes_is_refused() -> None:
    with pytest.raises(ValueError, match="outcomes: needs one or more"):
        estimates([])
    with pytest.raises(ValueError, match="needs every id once, got '1' twice"):
        estimates([OUTCOMES[0], OUTCOMES[0]])
    with pytest.raises(ValueError, match="needs other groups than 'all', got it for '1'"):
        estimates([Outcome("1", "a", ("all",), {})])
