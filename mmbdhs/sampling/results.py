"""What the sampler is told and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from mmbdhs.native import ops
from mmbdhs.sampling.image_corruption import DIFFUSION_STEPS
from mmbdhs.sampling.splicing import SentenceSplice


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


@dataclass(frozen=True)
class BDHSSample:
    """A rejected response, with all that is needed to replay it against a plain masked forward.

    similarity: to the reference. iterations: how many were needed.
    guided: False if the unguided response was taken.
    visible_image_tokens: which of the example's image tokens the taken iteration could see.
    sentences: how each sentence was spliced. Empty for an unguided response, whose tokens are `response_ids`.
    """

    key: int | str
    rejected: str
    similarity: float
    iterations: int
    guided: bool
    visible_image_tokens: tuple[int, ...]
    sentences: tuple[SentenceSplice, ...] = ()
    response_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BDHSFailure:
    """Holds the place of an example that could not be sampled (`on_error="skip"`)."""

    key: int | str | None
    index: int
    reason: str


@dataclass(frozen=True)
class POVIDSample:
    """A teacher-forced rejected response: `response_ids[t]` is the arg-max after the reference's first t tokens."""

    key: int | str
    rejected: str
    response_ids: tuple[int, ...]


class ExampleError(ValueError):
    """An example that cannot be sampled; its `failure` says which and why."""

    def __init__(self, failure: BDHSFailure) -> None:
        super().__init__(f"example {failure.index}: {failure.reason}")
        self.failure = failure


def check_on_error(on_error: str) -> None:
    """Raises ValueError for what is neither "raise" nor "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: needs 'raise' or 'skip', got {on_error!r}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}: needs a number in [{low}, {high}], got {value!r}")
