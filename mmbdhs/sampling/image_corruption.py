"""How the model's view of the image is restricted: hidden image tokens (Eq. 6), or noise (Eq. 8 and 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmbdhs.errors import ExampleError
from mmbdhs.native import ops

if TYPE_CHECKING:
    from PIL.Image import Image

DIFFUSION_STEPS = 1000
NOISE_RANGES = ("clip", "wrap", "pixel_values")


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


@dataclass(frozen=True)
class Noise:
    """Eq. 9 for an example's images, by addressed draws.

    steps: N, how many steps of diffusion.
    noise_range: what becomes of values beyond black and white, one of `NOISE_RANGES`. "clip" rounds to 8 bits and clips
        them. "wrap" keeps their lowest 8 bits, as POVID's code does (github.com/YiyangZhou/POVID): a value a little
        above white becomes black, which destroys more. "pixel_values" diffuses what the processor makes of the clean
        images, which are normalised values without bounds.
    seed, key, iteration: address the noise, together with the image's number.
    """

    steps: int
    noise_range: str
    seed: int
    key: int
    iteration: int

    def of_images(self, images: list[Image]) -> list[Image]:
        """The noisy 8-bit images; the images themselves for "pixel_values"."""
        if self.noise_range == "pixel_values":
            return images
        return [self._noisy(image, number) for number, image in enumerate(images)]

    def of_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A processor's output with noisy pixel values; the output itself for the other ranges.

        Raises ExampleError for output without pixel values.
        """
        if self.noise_range != "pixel_values":
            return inputs
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
            names = ", ".join(map(repr, inputs))
            raise ExampleError(f"noise_range: 'pixel_values' needs a processor that makes pixel_values, got {names}")
        noisy = torch.from_numpy(self._diffused(pixels.double().cpu().numpy(), 0))
        return inputs | {"pixel_values": noisy.to(pixels)}

    def _noisy(self, image: Image, number: int) -> Image:
        from PIL import Image as PILImage

        levels = 255.0 * self._diffused(np.asarray(image, dtype=np.float64) / 255.0, number)
        if self.noise_range == "wrap":
            return PILImage.fromarray((np.trunc(levels).astype(np.int64) % 256).astype(np.uint8))
        return PILImage.fromarray(np.round(levels.clip(0.0, 255.0)).astype(np.uint8))

    def _diffused(self, values: np.ndarray, number: int) -> np.ndarray:
        noise = _standard_normal(self.seed, self.key, self.iteration, number, values.size)
        return diffuse(values, self.steps, noise.reshape(values.shape))


def _standard_normal(seed: int, key: int, iteration: int, number: int, count: int) -> np.ndarray:
    """`count` addressed draws of the standard normal distribution, by the Box-Muller transform."""
    half = (count + 1) // 2
    keys, numbers = torch.tensor([key]), torch.tensor([number], dtype=torch.int32)
    uniforms = ops.random_uniform(seed, keys, ops.NOISE, iteration, numbers, 2 * half)[0].numpy()
    radius, angle = np.sqrt(-2.0 * np.log1p(-uniforms[:half])), 2.0 * np.pi * uniforms[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
