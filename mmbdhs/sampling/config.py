"""Settings of sampling."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from mmbdhs.checks import at_least_zero, integer, number_in, one_of
from mmbdhs.native import ADDRESS_LAYOUT
from mmbdhs.sampling.image_corruption import DIFFUSION_STEPS, NOISE_RANGES, Noise

_MOST_TOKENS = 2**17  # of a response; every token's draw is made beforehand
_MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn.

    temperature: divides the logits; 0 for greedy decoding.
    top_p: least probability that the kept tokens have together; 1 for all tokens.
    top_k: number of most probable tokens that are kept; 0 for all.
    max_new_tokens: the most tokens of a whole response.
    seed: of every draw.
    max_branches: how many continuations decode at a time.
    num_workers: how many threads read and process images while the model runs; 0 to do so in between. None: 4, or 0 for
        a model on the CPU, which needs the cores itself. Results do not depend on it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0
    max_branches: int = 64
    num_workers: int | None = None

    def __post_init__(self) -> None:
        at_least_zero(temperature=self.temperature)
        number_in("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ValueError("top_p: needs a number above 0, got 0")
        integer("top_k", self.top_k, 0, 2**31)
        integer("max_new_tokens", self.max_new_tokens, 1, _MOST_TOKENS)
        integer("seed", self.seed, 0, 2**64 - 1)
        integer("max_branches", self.max_branches, 1, 2**31)
        if self.num_workers is not None:
            integer("num_workers", self.num_workers, 0, _MOST_WORKERS)

    def identity(self) -> dict[str, Any]:
        """The settings that results depend on, by name: not how many threads read images."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "num_workers"}

    @property
    def usual_tokens(self) -> int:
        """The most tokens that a continuation usually adds."""
        return self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class BDHSConfig(SamplingConfig):
    """Settings of Algorithm 1; the defaults are the paper's. The settings of `SamplingConfig` apply too, where
    `max_new_tokens` limits an unguided response.

    mask_threshold: ρ_th of Eq. 6, the share of image tokens that is hidden.
    noise_steps: N of Eq. 9; above 0 the image is diffused instead of masked, and mask_threshold is not used.
    noise_range: what becomes of values beyond black and white: "clip", "wrap" as in POVID's code, or "pixel_values",
        which diffuses the processor's normalised values; see `image_corruption.Noise`.
    max_iterations: N_BDHS. The last of several iterations is unguided and accepted whatever its similarity. For a
        reference with markup between its sentences, such as <think>, it is guided too, so that the markup stays.
    similarity_threshold: ε_s; a response at least this similar to its reference is drawn again.
    guided: False generates whole responses without the reference (the guidance-free ablation).
    max_sentence_tokens: the most tokens that complete one sentence; the paper names no limit.
    """

    mask_threshold: float = 0.99
    noise_steps: int = 0
    noise_range: str = "clip"
    max_iterations: int = 5
    similarity_threshold: float = 0.97
    guided: bool = True
    max_sentence_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in("mask_threshold", self.mask_threshold, 0, 1)
        number_in("similarity_threshold", self.similarity_threshold, 0, 1)
        integer("noise_steps", self.noise_steps, 0, DIFFUSION_STEPS)
        one_of("noise_range", self.noise_range, NOISE_RANGES)
        integer("max_iterations", self.max_iterations, 1, ADDRESS_LAYOUT["iteration_limit"] - 1)
        integer("max_sentence_tokens", self.max_sentence_tokens, 1, _MOST_TOKENS)
        one_of("guided", self.guided, (True, False))

    @property
    def usual_tokens(self) -> int:
        return self.max_sentence_tokens if self.guided else self.max_new_tokens

    def noise(self, key: int, iteration: int) -> Noise | None:
        """The noise on the images of an iteration; None if image tokens are hidden instead.

        key: the example's 64-bit address.
        """
        return Noise(self.noise_steps, self.noise_range, self.seed, key, iteration) if self.noise_steps else None
