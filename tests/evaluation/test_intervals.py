"""Intervals against scipy, numbers worked by hand, and the coverage that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mmbdhs.evaluation import Estimate, mean_interval, ratio


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 13), (1, 1), (7, 20), (2562, 2910), (13, 13)])
def test_a_plain_share_has_wilsons_interval(hits: int, trials: int) -> None:
    found = ratio([1] * hits + [0] * (trials - hits), [1] * trials)
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, "wilson")
    assert found.value == hits / trials and found.count == trials
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_ratio_of_clusters_worked_by_hand() -> None:
    # Clusters a: 3 of 4, b: 1 of 4, c: 2 of 2, so R = 0.6, residuals 0.6, −1.4, 0.8, squares 0.36 + 1.96 + 0.64 = 2.96.
    # V = 3/2 · 9/10 · 2.96 / 100 = 0.03996; 0.24 / V = 6.006 trials; t_9 = 2.2622, t_2 = 4.3027: 1.6602 trials.
    y, x = [2, 1, 1, 0, 2, 0], [2, 2, 2, 2, 2, 0]
    found = ratio(y, x, ["a", "b", "a", "b", "c", "d"])
    # Wilson with n = 1.6602: z²/n = 2.3139, middle (0.6 + 1.1569) / 3.3139 = 0.5302,
    # half 1.95996 / 3.3139 · √(0.24 / 1.6602 + 3.8415 / (4 · 2.7563)) = 0.4153.
    assert found.value == pytest.approx(0.6)
    assert found.count == 5
    assert (found.low, found.high) == pytest.approx((0.1149, 0.9455), abs=2e-4)
    assert str(found) == f"0.600 [{found.low:.3f}, {found.high:.3f}] (n = 5)"


def test_all_or_nothing_is_worth_the_clusters() -> None:
    expected = stats.binomtest(0, 4).proportion_ci(0.95, "wilson")
    found = ratio([0] * 12, [1] * 12, [0, 1, 2, 3] * 3)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)
    every = ratio([1] * 12, [1] * 12, [0, 1, 2, 3] * 3)
    assert (every.low, every.high) == pytest.approx((1 - found.high, 1.0))


def test_residuals_that_cancel_give_no_more_trials_than_there_are() -> None:
    z = stats.norm.ppf(0.975)
    for y, x in (([1, 1, 1], [2, 2, 2]), ([2, 3, 3, 4], [5, 5, 7, 7])):  # residuals of 0, and of ±1/2
        trials = sum(x) * (stats.t.ppf(0.975, sum(x) - 1) / stats.t.ppf(0.975, len(x) - 1)) ** 2
        found = ratio(y, x)
        half = z / (1 + z**2 / trials) * math.sqrt(0.25 / trials + z**2 / (4 * trials**2))
        assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_one_cluster_is_one_trial_and_nothing_is_unknown() -> None:
    alone = ratio([1, 0], [1, 1], ["a", "a"])
    assert (alone.low, alone.high) == pytest.approx((0.5 - 0.4454, 0.5 + 0.4454), abs=1e-4)  # z / (2 √(1 + z²))
    nothing = ratio([0, 0], [0, 0])
    assert math.isnan(nothing.value) and (nothing.low, nothing.high, nothing.count) == (0.0, 1.0, 0)


def test_intervals_of_clustered_shares_cover_as_promised() -> None:
    """2,000 draws of 80 images with 6 questions, the images' shares Beta(4, 1) (correlation 1/6). If intervals cover in
    95% of draws or more, 1,862 hits or fewer have a chance below 2e-4; blind to images they cover in about 85%."""
    rng, clusters = np.random.default_rng(7), np.repeat(np.arange(80), 6)
    seeing = blind = 0
    for _ in range(2000):
        hits = rng.random(480) < rng.beta(4, 1, 80)[clusters]
        for_images, alone = ratio(hits, np.ones(480), clusters), ratio(hits, np.ones(480))
        seeing += for_images.low <= 0.8 <= for_images.high
        blind += alone.low <= 0.8 <= alone.high
    assert seeing > 1862 > blind


def test_mean_interval_is_students() -> None:
    values = [0.251, 0.262, 0.243]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high, found.count) == pytest.approx((0.252, low, high, 3))
    assert mean_interval([2.0]) == Estimate(2.0, -math.inf, math.inf, 1)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"numerators: needs 0 ≤ y ≤ x, got y = 2, x = 1 at 1"):
        ratio([0, 2], [1, 1])
    with pytest.raises(ValueError, match=r"need one length, got \[2, 2, 1\]"):
        ratio([0, 1], [1, 1], ["a"])
    for values in ([], [0.1, math.nan]):
        with pytest.raises(ValueError, match="values: needs one finite number or more"):
            mean_interval(values)
