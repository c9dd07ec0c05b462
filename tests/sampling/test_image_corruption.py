"""Eq. 6 and Eq. 8-9 against hand-worked values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.plain import FALSE_ALARM, picture
from PIL import Image as PILImage
from scipy import stats

from mmbdhs.errors import ExampleError
from mmbdhs.sampling.image_corruption import Noise, diffuse, diffusion_betas, visible_image_tokens


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
    noisy = [np.asarray(Noise(60, "clip", 0, key, 1).of_images([grey])[0], dtype=float) for key in (1, 1, 2)]
    assert np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[0], noisy[2])
    kept = np.prod(1 - diffusion_betas(60)[1:])
    residual = (noisy[0].ravel() / 255 - math.sqrt(kept) * 128 / 255) / math.sqrt(1 - kept)
    inside = np.abs(residual) < 3  # values are rounded to 1/255 and clipped only far outside
    share = stats.norm.cdf(3) - stats.norm.cdf(-3)
    assert stats.binomtest(int(inside.sum()), inside.size, share).pvalue > 1e-6
    assert abs(residual[inside].mean()) < 6 / math.sqrt(inside.size)
    two = Noise(60, "clip", 0, 1, 1).of_images([grey, grey])
    assert not np.array_equal(np.asarray(two[0]), np.asarray(two[1]))


def test_thresholds_at_the_ends() -> None:
    assert visible_image_tokens(0, 7, 1, 50, 0.0).tolist() == list(range(50))
    assert visible_image_tokens(0, 7, 1, 50, 1.0).tolist() == []
    drawn = visible_image_tokens(3, -1, 2, 1000, 0.5)
    assert drawn.tolist() == sorted(set(drawn.tolist()))


def test_values_beyond_white_and_black_are_clipped_or_wrapped() -> None:
    """256 levels modulo 256, by hand: 1.1 · 255 = 280.5 → 280 → 24, and −0.1 · 255 = −25.5 → −25 → 231."""
    values = np.array([[[-0.1, 0.5, 1.1]]])
    image = PILImage.fromarray(np.zeros((1, 1, 3), np.uint8))

    def shown(noise_range: str) -> list[int]:
        noise = Noise(500, noise_range, 0, 0, 1)
        object.__setattr__(noise, "_diffused", lambda pixels, number: values)
        return np.asarray(noise.of_images([image])[0])[0, 0].tolist()

    assert shown("clip") == [0, 128, 255] and shown("wrap") == [231, 127, 24]


def test_wrapping_destroys_more_than_clipping() -> None:
    """The correlation with the clean image: of a picture, about .3 at N = 500 where it is clipped, none where it wraps,
    and between the two at N = 300."""
    clean = np.asarray(
        smooth := picture(0, 12, 12).resize((300, 300), PILImage.Resampling.BICUBIC), dtype=float
    ).ravel()

    def kept(steps: int, noise_range: str) -> float:
        noisy = np.asarray(Noise(steps, noise_range, 0, 5, 1).of_images([smooth])[0], dtype=float).ravel()
        return float(np.corrcoef(clean, noisy)[0, 1])

    assert 0.1 < kept(500, "clip") < 0.4 and abs(kept(500, "wrap")) < 0.06
    assert kept(300, "clip") > kept(300, "wrap") > 2 * abs(kept(500, "wrap"))


def test_normalised_pixel_values_are_diffused_as_they_are() -> None:
    noise, pixels = Noise(200, "pixel_values", 3, 7, 2), torch.randn(1, 2, 3, 5, 5)
    image = picture(0)
    assert noise.of_images([image]) == [image]
    inputs = {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "pixel_values": pixels}
    noisy = noise.of_inputs(inputs)
    kept = np.prod(1 - diffusion_betas(200)[1:])
    residual = (noisy["pixel_values"].double() - math.sqrt(kept) * pixels.double()) / math.sqrt(1 - kept)
    assert stats.kstest(residual.flatten().numpy(), "norm").pvalue > FALSE_ALARM
    assert noisy["input_ids"] is inputs["input_ids"] and torch.equal(
        noise.of_inputs(inputs)["pixel_values"], noisy["pixel_values"]
    )
    assert Noise(200, "clip", 3, 7, 2).of_inputs(inputs) is inputs
    with pytest.raises(ExampleError, match="noise_range: 'pixel_values' needs a processor that makes pixel_values"):
        noise.of_inputs({"input_ids": inputs["input_ids"]})
