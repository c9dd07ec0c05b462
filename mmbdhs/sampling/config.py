"""Settings of sampling."""

from __future__ import annotations

from dataclasses import dataclass

from mmbdhs.native import ops
from mmbdhs.sampling.image_corruption import DIFFUSION_STEPS


@dataclass(frozen=True)
class BDHSConfig:
    """Settings of Algorithm 1; the defaults are the paper's.

    mask_threshold: ρ_th of Eq. 6, the share of image tokens that is hidden.
    noise_steps: N of Eq. 9; above 0 the image is diffused instead of masked, and mask_threshold is not used.
    max_iterations: N_BDHS. The last of several iterations is unguided and accepted whatever its similarity.
    similarity_threshold: ε_s; a response at least this similar to its reference is drawn again.
    guided: False generates whole responses without the reference (the guidance-free ablation).
    temperature (0 is greedy), top_p, top_k (0 is off): the distribution that tokens are drawn from.
    max_sentence_tokens, max_new_tokens: generated at most for a sentence, and for an unguided response.
    seed: of every draw. max_branches: how many sentences decode at a time.
    """

    mask_threshold: float = 0.99
    noise_steps: int = 0
    max_iterations: int = 5
    similarity_threshold: float = 0.97
    guided: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_sentence_tokens: int = 64
    max_new_tokens: int = 256
    seed: int = 0
    max_branches: int = 64

    def __post_init__(self) -> None:
        _within("mask_threshold", self.mask_threshold, 0, 1)
        _within("similarity_threshold", self.similarity_threshold, 0, 1)
        _within("temperature", self.temperature, 0, float("inf"))
        _within("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ValueError("top_p: needs a number above 0, got 0")
        for name, low, high in (
            ("noise_steps", 0, DIFFUSION_STEPS),
            ("max_iterations", 1, ops.ADDRESS_LAYOUT["iteration_limit"] - 1),
            ("top_k", 0, 2**31),
            ("max_sentence_tokens", 1, 2**31),
            ("max_new_tokens", 1, 2**31),
            ("seed", 0, 2**64 - 1),
            ("max_branches", 1, 2**31),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: needs an integer, got {value!r}")
            _within(name, value, low, high)


def _within(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}: needs a number in [{low}, {high}], got {value!r}")
