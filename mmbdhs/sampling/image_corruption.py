"""How the model's view of the image is restricted: hidden image tokens (Eq. 6), or noise (Eq. 8 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native import ops

if TYPE_CHECKING:
    from PIL.Image import Image

DIFFUSION_STEPS = 1000


def visible_image_tokens(seed: int, key: int, iteration: int, count: int, threshold: float) -> Tensor:
    """Eq. 6 for one example: the indices of the image tokens that stay visible, int64 [v], ascending.

    seed, key, iteration: address the draws; `key` is the example's 64-bit address.
    count: number of image tokens.
    threshold: ρ_th; each token stays visible with probability 1 - threshold. 0 hides nothing, 1 hides all.
    """
    keys, counts = torch.tensor([key]), torch.tensor([count], dtype=torch.int32)
    return ops.sample_visible(seed, keys, iteration, counts, threshold)[0].long()


def diffusion_betas(steps: int = DIFFUSION_STEPS) -> np.ndarray:
    """The variance schedule of Eq. 8: beta_k for k = 0 … steps, float64 [steps + 1]."""
    ramp = -6.0 + 12.0 * np.arange(steps + 1) / DIFFUSION_STEPS
    return (0.5e-2 - 1e-5) / (1.0 + np.exp(-ramp)) + 1e-5


def diffuse(image: np.ndarray, steps: int, noise: np.ndarray) -> np.ndarray:
    """Eq. 9, all `steps` of Eq. 8 at once: sqrt(ā) image + sqrt(1 - ā) noise with ā = prod(1 - beta_k), k = 1 … steps.

    image: values in [0, 1], any shape.
    steps: N, how many steps of diffusion.
    noise: standard normal, the shape of `image`.

    The result is not clipped.
    """
    kept = np.prod(1.0 - diffusion_betas(steps)[1:])
    return np.sqrt(kept) * image + np.sqrt(1.0 - kept) * noise


def noisy_images(images: list[Image], steps: int, seed: int, key: int, iteration: int) -> list[Image]:
    """Diffuse an example's RGB images by `steps` steps. The results are 8-bit images again, so values beyond black and
    white are clipped.

    seed, key, iteration: address the noise, together with the image's number.
    """
    return [_noisy(image, steps, (seed, key, iteration, number)) for number, image in enumerate(images)]


def _noisy(image: Image, steps: int, address: tuple[int, int, int, int]) -> Image:
    from PIL import Image as PILImage

    pixels = np.asarray(image, dtype=np.float64) / 255.0
    noise = _standard_normal(*address, pixels.size).reshape(pixels.shape)
    noisy = diffuse(pixels, steps, noise).clip(0.0, 1.0)
    return PILImage.fromarray(np.round(noisy * 255.0).astype(np.uint8))


def _standard_normal(seed: int, key: int, iteration: int, number: int, count: int) -> np.ndarray:
    """`count` addressed draws of the standard normal distribution, by the Box-Muller transform."""
    half = (count + 1) // 2
    keys, numbers = torch.tensor([key]), torch.tensor([number], dtype=torch.int32)
    uniforms = ops.random_uniform(seed, keys, ops.NOISE, iteration, numbers, 2 * half)[0].numpy()
    radius, angle = np.sqrt(-2.0 * np.log1p(-uniforms[:half])), 2.0 * np.pi * uniforms[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
