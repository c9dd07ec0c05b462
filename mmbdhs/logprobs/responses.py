"""Responses to image prompts, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mmbdhs.errors import ExampleError
from mmbdhs.vlm import VLM

Responses = Sequence[Sequence[Sequence[int] | Tensor]]
Tokens = TypeVar("Tokens", bound=Any)
Masks = Sequence[Sequence[Sequence[bool]]]


class ResponseLogps(NamedTuple):
    """Log-probabilities of N responses to each of B prompts.

    tokens: float32 [B, N, R], log p of each response token in nats, 0 where padded.
    mask: bool [B, N, R], where there is a token that counts.
    """

    tokens: Tensor
    mask: Tensor

    @property
    def sums(self) -> Tensor:
        """log p of each response, float32 [B, N]; 0 for an empty one."""
        return self.tokens.sum(dim=2)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each response that count, int64 [B, N]."""
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
    checked = []
    for number, (inputs, texts) in enumerate(zip(prompts, responses, strict=True)):
        _check_prompt(vlm, inputs, number)
        prompt = inputs["input_ids"]
        tensors = [_text_ids(vlm, text).to(prompt.device) for text in texts]
        try:
            checked.append(fit_context(vlm, prompt.shape[1], tensors, truncate))
        except ExampleError as error:
            raise ExampleError(f"{error} for prompt {number}") from error
    return checked


def checked_targets(vlm: VLM, ids: list[list[Tensor]], targets: Sequence[Sequence[int] | Tensor]) -> list[Tensor]:
    """For each prompt token ids in the places of its first response, int64 [R], cut as that was. Raises ValueError for
    lists that do not fit."""
    firsts = [texts[0] for texts in ids]
    if len(targets) != len(firsts) or any(len(t) < len(first) for t, first in zip(targets, firsts, strict=True)):
        raise ValueError(
            f"targets: needs for each prompt the ids of as many tokens as its first response has, "
            f"{[len(first) for first in firsts]}, got {[len(target) for target in targets]}"
        )
    return [
        _token_ids(vlm, t, "targets")[: len(first)].to(first.device) for t, first in zip(targets, firsts, strict=True)
    ]


def _check_prompt(vlm: VLM, inputs: Mapping[str, Any], number: int) -> None:
    """Raise ValueError for a prompt that is no processor's output for one image prompt, and for NaN in its images.
    Tensors on a device are not read, because the host would wait for it."""
    ids = inputs["input_ids"]
    if ids.ndim != 2 or len(ids) != 1:
        raise ValueError(f"prompts: needs input_ids [1, L] in each, got {list(ids.shape)} in prompt {number}")
    numbers = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()}
    if not numbers and bool((ids == vlm.image_token_id).any()):
        raise ValueError(
            f"prompts: needs the pixel values of its images, got {', '.join(map(repr, inputs))} in prompt {number}"
        )
    if bad := [name for name, x in numbers.items() if x.device.type == "cpu" and not bool(x.isfinite().all())]:
        raise ValueError(f"prompts: needs finite numbers, got NaN or infinity in {bad[0]!r} of prompt {number}")


def _text_ids(vlm: VLM, response: Sequence[int] | Tensor) -> Tensor:
    """`_token_ids` for a response, which is text: the model would look for another image."""
    ids = _token_ids(vlm, response, "responses")
    if len(ids) and ids.device.type == "cpu" and bool((ids == vlm.image_token_id).any()):
        raise ValueError(f"responses: needs tokens of text, got the image token {vlm.image_token_id} in a response")
    return ids


def _token_ids(vlm: VLM, tokens: Sequence[int] | Tensor, name: str) -> Tensor:
    """Token ids as int64 [R]. Raises ValueError for anything else. Ids on a device are not read, because the host would
    wait for it."""
    ids = torch.as_tensor(tokens)
    if len(ids) and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise ValueError(f"{name}: needs token ids, got numbers of {ids.dtype}")
    if len(ids) and ids.device.type == "cpu":
        low, high = ids.aminmax()
        if low < 0 or high >= vlm.embedding_count:
            last = vlm.embedding_count - 1
            raise ValueError(f"{name}: needs token ids in 0 … {last}, got {int(low)} … {int(high)}")
    return ids.to(torch.int64)


def fit_context(vlm: VLM, prompt_length: int, responses: Sequence[Tokens], truncate: bool) -> list[Tokens]:
    """The responses (token ids or masks), cut at the end of the model's context if that is allowed.

    prompt_length: number of the prompt's tokens, which are never cut.

    Raises ExampleError for a prompt that leaves no room, and for longer responses where they may not be cut.
    """
    room, most = vlm.context_length - prompt_length, max(map(len, responses))
    if room < min(most, 1) or (most > room and not truncate):
        name = "prompts" if room < min(most, 1) else "responses"
        raise ExampleError(
            f"{name}: needs at most {vlm.context_length} tokens of prompt and response (the model's context; "
            f"truncate_responses=True cuts responses, never prompts), got {prompt_length} + {most}"
        )
    return [response[: int(min(room, len(response)))] for response in responses]


def as_response_logps(tokens: Tensor, ids: list[list[Tensor]], masks: Masks | None) -> ResponseLogps:
    """Log-probabilities by prompt and response.

    tokens: float32 [ΣR], those of all responses one after another.
    ids: the responses' tokens.
    masks: which of them count; None for all. What follows the end of a cut response is not read.
    """
    lengths = torch.tensor([[len(text) for text in texts] for texts in ids], device=tokens.device)
    mask = torch.arange(int(lengths.max()), device=tokens.device) < lengths[..., None]
    padded = tokens.new_zeros(mask.shape).masked_scatter(mask, tokens)
    if masks is None:
        return ResponseLogps(padded, mask)
    mask = mask.masked_scatter(mask, torch.tensor(_counted(masks, ids), dtype=torch.bool, device=tokens.device))
    return ResponseLogps(padded.masked_fill(~mask, 0.0), mask)


def _counted(masks: Masks, ids: list[list[Tensor]]) -> list[bool]:
    """The masks of all responses one after another, as far as the responses reach."""
    pairs = [pair for rows, texts in zip(masks, ids, strict=True) for pair in zip(rows, texts, strict=True)]
    if short := [(len(mask), len(text)) for mask, text in pairs if len(mask) < len(text)]:
        raise ValueError(f"masks: needs a bool for each token of a response, got {short[0][0]} for {short[0][1]}")
    return [bool(counts) for mask, text in pairs for counts in mask[: len(text)]]
