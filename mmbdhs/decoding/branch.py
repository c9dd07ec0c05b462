"""One continuation of a prompt: what it is conditioned on and what has been generated so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Branch:
    """One continuation of a prompt.

    prefix_length: how many of the prompt's kept tokens the branch sees.
    limit: the most tokens that it may generate.
    forced_ids: tokens that follow the prefix in this branch alone.
    begin_suppress_tokens: ids that it must not begin with; only for a branch without forced tokens.
    uniforms: float [limit], the addressed draw of each generated token; empty for greedy decoding.
    ids: the tokens generated so far.
    error: why the branch cannot go on; None while it can.

    The pool sets the rest:

    prompt_index: the prompt's number in the cache.
    start: [R] position ids of the first token after the prefix.
    first_index: index of that token in its whole sequence.
    stored: how many of the branch's own keys are in the cache.
    """

    prefix_length: int
    limit: int
    forced_ids: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    uniforms: Tensor = field(default_factory=lambda: torch.empty(0))
    ids: list[int] = field(default_factory=list)
    error: Exception | None = None
    prompt_index: int = 0
    start: Sequence[int] = ()
    first_index: int = 0
    stored: int = 0

    @property
    def most_stored(self) -> int:
        """The most keys of its own that will be in the cache."""
        return len(self.forced_ids) + self.limit
