"""What sampling gives back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mmbdhs.sampling.splicing import SentenceSplice

_LOG = logging.getLogger("mmbdhs")


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


def settled(result: Any, on_error: str) -> Any:
    if isinstance(result, BDHSFailure):
        if on_error == "raise":
            raise ExampleError(result)
        _LOG.warning("skipped example %d: %s", result.index, result.reason)
    return result
