"""From preference records to what a training step takes, and reference log-probabilities stored with the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn

from mmbdhs.data import Images, Messages, as_messages, load_images, message_text
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.responses import ResponseLogps, Responses
from mmbdhs.vlm import VLM, Processor, encode_turn, first_tokens, render_turn


def encode_responses(
    model: nn.Module, processor: Processor, images: Images, prompt: str | Messages, responses: Sequence[str]
) -> tuple[dict[str, Any], list[list[int]]]:
    """A prompt and its responses as `response_logps` takes them.

    model: tells device and dtype.
    processor: the model's processor.
    images: as `bdhs_sample` takes them for one prompt.
    prompt: a string or a message list.
    responses: one text or more.

    Returns the processor's output over the prompt, on the model's device, and the token ids of each response with what
    the chat template writes after it (the end of sequence). Raises ExampleError for responses without text.
    """
    loaded = load_images(images)
    messages = as_messages(prompt, len(loaded))
    if not responses or not all(isinstance(text, str) and text.strip() for text in responses):
        raise ExampleError(f"responses: needs one text or more, got {responses!r}")
    turns = [render_turn(processor, messages, text) for text in responses]
    vlm = VLM.of(model)
    inputs, start = encode_turn(processor, turns[0], loaded, vlm.device, vlm.dtype)
    return first_tokens(inputs, start), [[*turn.token_ids, *turn.closing_ids] for turn in turns]


def encode_record(
    model: nn.Module, processor: Processor, record: Mapping[str, Any]
) -> tuple[dict[str, Any], list[list[int]]]:
    """`encode_responses` for the chosen and then the rejected response of a record.

    record: in TRL's vision preference layout: `images`, `prompt`, `chosen`, `rejected`.
    """
    texts = [response_text(record[name]) for name in ("chosen", "rejected")]
    return encode_responses(model, processor, record["images"], record["prompt"], texts)


def reference_logps(
    model: nn.Module,
    prompts: Sequence[Mapping[str, Any]],
    responses: Responses,
    reference: nn.Module | None = None,
    **settings: Any,
) -> ResponseLogps:
    """`response_logps` under the model that training started from, without gradients and in evaluation mode.

    model: the policy.
    prompts, responses: as `response_logps` takes them.
    reference: the model that training started from; None for `model` with its adapters switched off.
    settings: the keyword arguments of `response_logps`.

    Raises ValueError without a reference for a model that has no adapters.
    """
    with ExitStack() as stack:
        if reference is None:
            if not hasattr(model, "disable_adapter"):
                raise ValueError(f"reference: needs a model, or adapters to switch off in {type(model).__name__}")
            stack.enter_context(cast("Any", model).disable_adapter())
        source = model if reference is None else reference
        stack.enter_context(torch.no_grad())
        stack.enter_context(VLM.of(source).evaluation_mode())
        return response_logps(source, prompts, responses, **settings)


def stored_reference_logps(
    model: nn.Module, processor: Processor, records: Iterable[Mapping[str, Any]], reference: nn.Module | None = None
) -> list[list[float]]:
    """[log p(chosen), log p(rejected)] under the reference for each record, to store with the data:
    `dataset.add_column("reference_logps", stored_reference_logps(…)).to_parquet(…)` with Hugging Face's `datasets`.

    Arguments are those of `encode_record` and `reference_logps`.
    """
    found = []
    for record in records:
        inputs, ids = encode_record(model, processor, record)
        found.append(reference_logps(model, [inputs], [ids], reference).sums[0].tolist())
    return found


def response_text(response: str | Messages) -> str:
    """The text of a response that is text, or a list of one assistant message."""
    return response if isinstance(response, str) else message_text(response[-1])
