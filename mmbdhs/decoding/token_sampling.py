"""The next token: what may be sampled, and how it is drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mmbdhs.vlm import VLM, Vocabulary


def vision_token_ids(vlm: VLM, tokenizer: Any) -> list[int]:
    """The ids that must never be sampled: those that stand for vision input rather than text, and the rows of the
    output head that no token has. Raises ValueError for a tokenizer that is larger than the model's embeddings."""
    vocabulary = Vocabulary.of(vlm, tokenizer)
    return sorted(vocabulary.vision_ids | vocabulary.unused_ids)


class TokenChooser:
    """Chooses the next token of each row: the arg-max, or the inverse of the distribution's CDF at an addressed draw.

    suppressed: ids that are never chosen.
    temperature: divides the logits; 0 for the arg-max.
    top_k: number of most probable tokens that are kept; 0 for all.
    top_p: least probability that the kept tokens have together; 1 for all tokens.
    """

    def __init__(self, suppressed: list[int], temperature: float, top_k: int, top_p: float) -> None:
        self._settings = tuple(suppressed), temperature, top_k, top_p
        self._suppressed = torch.tensor(suppressed, dtype=torch.int64)
        self._warpers: list[LogitsProcessor] = []
        if temperature not in (0.0, 1.0):
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(top_p))

    def __eq__(self, other: object) -> bool:
        """Whether the other chooses alike."""
        return isinstance(other, TokenChooser) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    def __call__(self, logits: Tensor, draws: Tensor | None) -> Tensor:
        """The chosen token ids, int64 [n], -1 where the logits are not finite.

        logits: [n, V].
        draws: uniforms float32 [n] in [0, 1), or None for the arg-max.
        """
        self._suppressed = self._suppressed.to(logits.device)
        scores = logits.float().index_fill(1, self._suppressed, -torch.inf)
        if draws is None:
            best, token = scores.max(dim=-1)  # NaN wins every maximum
            return torch.where(best.isfinite(), token, -1)
        for warper in self._warpers:
            scores = warper(None, scores)
        cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:]
        target = draws[:, None] * total
        # A target that is rounded up to the total would be found after the last token.
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        token = torch.searchsorted(cumulative, target, right=True)
        return torch.where(total.isfinite(), token, -1)[:, 0]


def token_chooser(vlm: VLM, tokenizer: Any, temperature: float, top_k: int = 0, top_p: float = 1.0) -> TokenChooser:
    """The chooser for a model's text: ids that stand for vision input are never chosen."""
    return TokenChooser(vision_token_ids(vlm, tokenizer), temperature, top_k, top_p)
