"""Eq. 6 and Eq. 8-9 against hand-worked values."""

from __future__ import annotations

import math

import numpy as np
from helpers.plain import picture
from scipy import stats

from mmbdhs.sampling.image_corruption import diffuse, diffusion_betas, noisy_images, visible_image_tokens


def test_schedule_matches_hand_worked_values() -> None:
    betas = diffusion_betas()
    # σ(-6) = 0.00247262, σ(0) = 1/2, σ(6) = 0.99752738; β = σ · 0.00499 + 0.00001
    assert len(betas) == 1001
    np.testing.assert_allclose(betas[[0, 500, 1000]], [2.23384e-05, 2.505e-03, 4.98766e-03], rtol=1e-5)
    assert np.all(np.diff(betas) > 0)


def test_one_leap_has_the_moments_of_step_by_step() -> None:
    """Eq. 9 against the mean and variance that Eq. 8 gives when it is followed step by step."""
    mean, variance = 0.8, 0.0
    for beta in diffusion_betas(500)[1:]:
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    image = np.full(1, 0.8)
    np.testing.assert_allclose(diffuse(image, 500, np.zeros(1)), mean, rtol=1e-12)
    np.testing.assert_allclose(diffuse(image, 500, np.ones(1)) - mean, math.sqrt(variance), rtol=1e-12)
    assert diffuse(image, 0, np.ones(1)) == 0.8


def test_noise_is_standard_normal_and_addressed() -> None:
    grey = picture(0, 200, 200).point(lambda _: 128)
    noisy = [np.asarray(noisy_images([grey], 60, 0, key, 1)[0], dtype=float) for key in (1, 1, 2)]
    assert np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[0], noisy[2])
    kept = np.prod(1 - diffusion_betas(60)[1:])
    residual = (noisy[0].ravel() / 255 - math.sqrt(kept) * 128 / 255) / math.sqrt(1 - kept)
    inside = np.abs(residual) < 3  # values are rounded to 1/255 and clipped only far outside
    share = stats.norm.cdf(3) - stats.norm.cdf(-3)
    assert stats.binomtest(int(inside.sum()), inside.size, share).pvalue > 1e-6
    assert abs(residual[inside].mean()) < 6 / math.sqrt(inside.size)
    two = noisy_images([grey, grey], 60, 0, 1, 1)
    assert not np.array_equal(np.asarray(two[0]), np.asarray(two[1]))


def test_thresholds_at_the_ends() -> None:
    assert visible_image_tokens(0, 7, 1, 50, 0.0).tolist() == list(range(50))
    assert visible_image_tokens(0, 7, 1, 50, 1.0).tolist() == []
    drawn = visible_image_tokens(3, -1, 2, 1000, 0.5)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
