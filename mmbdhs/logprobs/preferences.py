"""From preference records to what a training step takes, and reference log-probabilities stored with the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from mmbdhs.data import ChatPrompt, Images, Messages, Prompt, as_chat, as_response, load_images
from mmbdhs.errors import ExampleError
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.responses import ResponseLogps, Responses
from mmbdhs.vlm import (
    VLM,
    Processor,
    TextRule,
    Turn,
    check_messages,
    encode_turn,
    first_tokens,
    render_turn,
    render_turns,
    text_rule,
)


class EncodedResponses(NamedTuple):
    """A prompt and its responses as token ids.

    inputs: the processor's output over the prompt (batch size 1).
    ids: the token ids of each response.
    masks: for each response which of its tokens count; the others are turns of the user between the assistant's.
    """

    inputs: dict[str, Any]
    ids: list[list[int]]
    masks: list[list[bool]]


def encode_chat(
    model: nn.Module,
    processor: Processor,
    images: Images,
    prompt: Prompt,
    responses: Sequence[str | Messages],
    *,
    append_eos: bool = True,
    names: Sequence[str] = (),
    device: torch.device | None = None,
) -> EncodedResponses:
    """A prompt and its responses as `response_logps` takes them, where a response may hold several turns.

    model: tells device, dtype, and which tokens are not text.
    processor: the model's processor.
    images: as `bdhs_sample` takes them for one prompt.
    prompt: a string, a message list or a ChatPrompt.
    responses: one or more; each is text, or messages that begin and end with an assistant turn.
    append_eos: whether a response ends with a token that ends generation where the chat template writes none.
    names: the column of each response, for error messages.
    device: takes the inputs; None: the model's.

    The ids of a response include what the chat template writes after it. Raises ExampleError for responses without
    text, for text that spells tokens which are not text, and for several turns where the template does not mark which
    tokens are the assistant's.
    """
    vlm = VLM.of(model)
    rule, loaded = text_rule(vlm, processor), load_images(images)
    chat = as_chat(prompt, len(loaded))
    messages: Any = chat.messages
    check_messages(rule, "prompts", messages)
    if not responses or isinstance(responses, str):
        raise ValueError(f"responses: needs a list of one response or more, got {responses!r}")
    turns, masks = [], []
    for name, response in zip(names or ["responses"] * len(responses), responses, strict=True):
        turn, mask = _response_turn(processor, rule, messages, response, chat.template_arguments, name)
        own = turn.token_ids[max((i + 1 for i, counts in enumerate(mask) if not counts), default=0) :]
        closing = rule.closing(own, turn.closing_ids) if append_eos else list(turn.closing_ids)
        turns.append((turn, [*turn.token_ids, *closing]))
        masks.append([*mask, *[True] * len(closing)])
    inputs, start = encode_turn(processor, turns[0][0], loaded, device or vlm.device, vlm.dtype)
    return EncodedResponses(first_tokens(inputs, start), [ids for _, ids in turns], masks)


def _response_turn(
    processor: Processor,
    rule: TextRule,
    messages: Messages,
    response: str | Messages,
    arguments: dict[str, Any],
    name: str,
) -> tuple[Turn, list[bool]]:
    """A response in its conversation, and which of its tokens count."""
    given = as_response(response, name)
    if isinstance(given, str):
        turn = render_turn(processor, messages, rule.without_end(given), arguments, name)
        rule.require_ids(name, turn.own_ids)
        return turn, [True] * len(turn.token_ids)
    check_messages(rule, name, given)
    return render_turns(processor, messages, given, arguments)


def encode_responses(
    model: nn.Module,
    processor: Processor,
    images: Images,
    prompt: Prompt,
    responses: Sequence[str],
    *,
    append_eos: bool = True,
) -> tuple[dict[str, Any], list[list[int]]]:
    """`encode_chat` for responses of text: inputs and ids, all of which count.

    Raises ExampleError for responses of several turns too, of which only some tokens count.
    """
    return _whole(encode_chat(model, processor, images, prompt, responses, append_eos=append_eos))


def encode_record(
    model: nn.Module, processor: Processor, record: Mapping[str, Any], *, append_eos: bool = True
) -> tuple[dict[str, Any], list[list[int]]]:
    """`encode_responses` for the chosen and then the rejected response of a record.

    record: in TRL's vision preference layout: `images`, `prompt`, `chosen`, `rejected`, and where there are any `tools`
        and `chat_template_kwargs`.
    """
    return _whole(_encode_pair(model, processor, record, append_eos))


def _encode_pair(
    model: nn.Module, processor: Processor, record: Mapping[str, Any], append_eos: bool
) -> EncodedResponses:
    names = ("chosen", "rejected")
    responses, prompt = [record[name] for name in names], ChatPrompt.of_record(record)
    return encode_chat(model, processor, record["images"], prompt, responses, append_eos=append_eos, names=names)


def _whole(encoded: EncodedResponses) -> tuple[dict[str, Any], list[list[int]]]:
    if not all(map(all, encoded.masks)):
        raise ExampleError(
            "responses: needs one assistant turn in each, got several. `encode_chat` says which of their tokens count"
        )
    return encoded.inputs, encoded.ids


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
    model: nn.Module,
    processor: Processor,
    records: Iterable[Mapping[str, Any]],
    reference: nn.Module | None = None,
    *,
    append_eos: bool = True,
) -> list[list[float]]:
    """[log p(chosen), log p(rejected)] under the reference for each record, to store with the data:
    `dataset.add_column("reference_logps", stored_reference_logps(…)).to_parquet(…)` with Hugging Face's `datasets`.

    Arguments are those of `encode_record` and `reference_logps`.
    """
    found = []
    for record in records:
        pair = _encode_pair(model, processor, record, append_eos)
        logps = reference_logps(model, [pair.inputs], [pair.ids], reference, masks=[pair.masks])
        found.append(logps.sums[0].tolist())
    return found
