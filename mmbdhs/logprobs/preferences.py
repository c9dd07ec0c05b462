"""Preference records to what a training step takes, and reference log-probabilities that are stored beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from mmbdhs.data import Messages, as_messages, load_images, message_text
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.responses import ResponseLogps, Responses
from mmbdhs.vlm import encode, evaluating, first_tokens, input_device, render_turn, unwrapped


def encode_responses(
    model: nn.Module, processor: Any, images: Any, prompt: str | Messages, responses: Sequence[str]
) -> tuple[dict[str, Any], list[list[int]]]:
    """A prompt and its responses as `response_logps` takes them: the processor's output over the prompt, on the model's
    device, and each response's token ids, with what the chat template puts behind it (the end of sequence).

    images, prompt: as `bdhs_sample` takes them. Raises ValueError for responses without text."""
    loaded = load_images(images)
    messages = as_messages(prompt, len(loaded))
    if not responses or not all(isinstance(text, str) and text.strip() for text in responses):
        raise ValueError(f"responses: needs one text or more, got {responses!r}")
    turns = [render_turn(processor, messages, text) for text in responses]
    model = unwrapped(model)
    inputs, start = encode(processor, turns[0], loaded, input_device(model), model.dtype)
    return first_tokens(inputs, start), [[*turn.token_ids, *turn.closing_ids] for turn in turns]


def encode_record(
    model: nn.Module, processor: Any, record: Mapping[str, Any]
) -> tuple[dict[str, Any], list[list[int]]]:
    """`encode_responses` of a record in TRL's vision preference layout (`images`, `prompt`, `chosen`, `rejected`): the
    chosen response, then the rejected one."""
    texts = [response_text(record[name]) for name in ("chosen", "rejected")]
    return encode_responses(model, processor, record["images"], record["prompt"], texts)


def reference_logps(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    responses: Responses,
    reference: nn.Module | None = None,
    **settings: Any,
) -> ResponseLogps:
    """`response_logps` without gradients, in evaluation mode, of the model that training started from: `reference`, or
    `model` with its adapters switched off. settings: as `response_logps` takes them.

    Raises ValueError without a reference for a model that has no adapters."""
    with ExitStack() as stack:
        if reference is None:
            if not hasattr(model, "disable_adapter"):
                raise ValueError(f"reference: needs a model, or adapters to switch off in {type(model).__name__}")
            stack.enter_context(model.disable_adapter())
        source = model if reference is None else reference
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(unwrapped(source)))
        return response_logps(source, prompts, responses, **settings)


def stored_reference_logps(
    model: nn.Module, processor: Any, records: Iterable[Mapping[str, Any]], reference: nn.Module | None = None
) -> list[list[float]]:
    """[log p(chosen), log p(rejected)] under the reference for each record, to keep beside the data:
    `dataset.add_column("reference_logps", stored_reference_logps(…)).to_parquet(…)` with Hugging Face's `datasets`."""
    found = []
    for record in records:
        inputs, ids = encode_record(model, processor, record)
        found.append(reference_logps(model, [inputs], [ids], reference).sums[0].tolist())
    return found


def response_text(response: str | Messages) -> str:
    """The text of a response that is text, or a list of one assistant message."""
    return response if isinstance(response, str) else message_text(response[-1])
