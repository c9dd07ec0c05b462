"""Responses to image prompts, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmbdhs.vlm import VLM

Responses = Sequence[Sequence[Sequence[int] | Tensor]]


class ResponseLogps(NamedTuple):
    """Log-probabilities of N responses to each of B prompts.

    tokens: float32 [B, N, R], log p of each response token in nats, 0 where padded.
    mask: bool [B, N, R], where there is a token.
    """

    tokens: Tensor
    mask: Tensor

    @property
    def sums(self) -> Tensor:
        """log p of each response, float32 [B, N]; 0 for an empty one."""
        return self.tokens.sum(dim=2)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each response, int64 [B, N]."""
        return self.mask.sum(dim=2)


def checked_responses(
    vlm: VLM, prompts: Sequence[Mapping[str, Any]], responses: Responses, temperature: float, truncate: bool
) -> list[list[Tensor]]:
    """The responses as int64 [R], on the prompts' device.

    Raises ValueError for lists that do not fit, and for responses beyond the model's context unless they may be
    truncated. Prompts never are.
    """
    counts = {len(texts) for texts in responses}
    if len(prompts) != len(responses) or not prompts or len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"responses: needs a list for each of {len(prompts)} prompt(s), all of one number of responses, got lists "
            f"of {[len(texts) for texts in responses]}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: needs a number above 0, got {temperature}")
    checked, longest = [], vlm.context_length
    for number, (inputs, texts) in enumerate(zip(prompts, responses, strict=True)):
        prompt = inputs["input_ids"]
        if prompt.ndim != 2 or len(prompt) != 1:
            raise ValueError(f"prompts: needs input_ids [1, L] in each, got {list(prompt.shape)} in prompt {number}")
        room, most = longest - prompt.shape[1], max(map(len, texts))
        if room < 0 or (most > room and not truncate):
            raise ValueError(
                f"responses: needs at most {longest} tokens with the prompt (the model's context), got "
                f"{prompt.shape[1]} + {most} for prompt {number}; truncate_responses=True cuts responses, never prompts"
            )
        tensors = (torch.as_tensor(text, dtype=torch.int64, device=prompt.device) for text in texts)
        checked.append([text[: int(min(room, len(text)))] for text in tensors])
    return checked


def as_response_logps(tokens: Tensor, ids: list[list[Tensor]]) -> ResponseLogps:
    """Log-probabilities by prompt and response.

    tokens: float32 [ΣR], those of all responses one after another.
    ids: the responses' tokens.
    """
    lengths = torch.tensor([[len(text) for text in texts] for texts in ids], device=tokens.device)
    mask = torch.arange(int(lengths.max()), device=tokens.device) < lengths[..., None]
    return ResponseLogps(tokens.new_zeros(mask.shape).masked_scatter(mask, tokens), mask)
