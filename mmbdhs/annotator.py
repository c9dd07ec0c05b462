"""Which of two responses is better: annotators that rank pairs for Online-DPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmbdhs.prompts import Messages


class Comparison(NamedTuple):
    """Two responses to one image prompt. images, prompt: as `bdhs_sample` takes them."""

    key: int | str
    images: list[Any]
    prompt: str | Messages
    first: str
    second: str


Annotator = Callable[[Sequence[Comparison]], list[int | None]]
"""For each comparison 0 if the first response is better, 1 if the second is, None if it is undecided."""
