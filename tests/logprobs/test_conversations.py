"""Responses of several turns, and what templates take besides messages: through the chat template as TRL does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture

from mmbdhs.errors import ExampleError
from mmbdhs.logprobs import (
    encode_chat,
    encode_record,
    response_logps,
    separate_logps,
    stored_reference_logps,
)

MARKED_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | length }} {% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}NOTHINK {% endif %}"
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% set text = message['content'] if message['content'] is string else "
    "message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{% if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message.get('reasoning_content', '') + text + '</s>' }}{% endgeneration %}"
    "{% else %}{{ text + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
TURNS = [
    {"role": "assistant", "content": "There is a car."},
    {"role": "user", "content": "Is it red?"},
    {"role": "assistant", "content": "Yes, it is."},
]


@pytest.fixture(params=["llava", "llava_llama"])
def marked(request: Any) -> tuple[Any, Any]:
    """A model whose template marks the assistant's tokens."""
    model, processor = getattr(tiny_models, request.param)()
    processor = copy.copy(processor)
    processor.chat_template = MARKED_TEMPLATE
    return model, processor


def record(**columns: Any) -> dict[str, Any]:
    return {"images": [picture(0)], "prompt": "What is it?", "chosen": TURNS, "rejected": "A green dog."} | columns


def pair(model: Any, processor: Any, **columns: Any) -> Any:
    row = record(**columns)
    return encode_chat(model, processor, row["images"], row["prompt"], [row["chosen"], row["rejected"]])


def test_all_assistant_turns_form_the_response(marked: tuple[Any, Any]) -> None:
    model, processor = marked
    encoded = pair(model, processor)
    counted = [token for token, counts in zip(encoded.ids[0], encoded.masks[0], strict=True) if counts]
    shown = [joined(processor, ids) for ids in (encoded.ids[0], counted, encoded.ids[1])]
    assert shown[0] == "Thereisacar.</s>USER:Isitred?ASSISTANT:Yes,itis.</s>"
    assert shown[1] == "Thereisacar.</s>Yes,itis.</s>"
    assert shown[2] == "Agreendog.</s>" and all(encoded.masks[1])


def joined(processor: Any, ids: Any) -> str:
    return "".join(processor.tokenizer.decode(ids).split())


@pytest.mark.parametrize("way", [response_logps, separate_logps])
@torch.no_grad()
def test_only_the_assistants_tokens_are_scored(marked: tuple[Any, Any], way: Any) -> None:
    """They are scored after all that precedes them, the user's turn included."""
    model, processor = marked
    encoded = pair(model, processor)
    whole = way(model, [encoded.inputs], [encoded.ids])
    found = way(model, [encoded.inputs], [encoded.ids], masks=[encoded.masks])
    mask = torch.zeros_like(whole.mask)
    for row, counts in enumerate(encoded.masks):
        mask[0, row, : len(counts)] = torch.tensor(counts)
    assert torch.equal(found.mask, mask) and torch.equal(found.lengths, mask.sum(2))
    torch.testing.assert_close(found.tokens, whole.tokens * mask)
    assert not torch.allclose(found.sums[0, 0], whole.sums[0, 0])
    stored = stored_reference_logps(model, processor, [record()], model)
    packed = response_logps(model, [encoded.inputs], [encoded.ids], masks=[encoded.masks])
    torch.testing.assert_close(torch.tensor(stored), packed.sums)


def test_masks_need_an_entry_for_each_token(marked: tuple[Any, Any]) -> None:
    encoded = pair(*marked)
    with pytest.raises(ValueError, match="masks: needs a bool for each token of a response, got 2 for"):
        response_logps(marked[0], [encoded.inputs], [encoded.ids], masks=[[[True] * 2, encoded.masks[1]]])


def test_a_template_that_does_not_mark_the_assistant_refuses_several_turns() -> None:
    model, processor = tiny_models.llava()
    with pytest.raises(ExampleError, match=r"needs one assistant turn, or a chat template that marks .*generation"):
        pair(model, processor)


def test_two_values_cannot_say_which_tokens_count(marked: tuple[Any, Any]) -> None:
    with pytest.raises(ExampleError, match="responses: needs one assistant turn in each, got several"):
        encode_record(*marked, record())


def test_one_turn_with_more_than_text_is_written_by_the_template(marked: tuple[Any, Any]) -> None:
    model, processor = marked
    chosen = [{"role": "assistant", "content": "A car.", "reasoning_content": "It has wheels. "}]
    inputs, ids = encode_record(model, processor, record(chosen=chosen))
    assert processor.tokenizer.decode(ids[0]).strip() == "It has wheels. A car.</s>"
    assert processor.tokenizer.decode(inputs["input_ids"][0]).endswith("What is it? ASSISTANT:")


def test_tools_and_template_variables_reach_the_template(marked: tuple[Any, Any]) -> None:
    model, processor = marked
    tools = [{"type": "function", "function": {"name": "zoom"}}]
    columns = {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    found, ids = encode_record(model, processor, record(chosen="A car.", **columns))
    plain, same = encode_record(model, processor, record(chosen="A car."))
    text, without = (joined(processor, one["input_ids"][0]).replace("<s>", "") for one in (found, plain))
    assert text.startswith("TOOLS1NOTHINKUSER:") and without.startswith("USER:")
    assert ids == same


def test_a_variable_that_the_template_call_itself_uses_is_refused(marked: tuple[Any, Any]) -> None:
    with pytest.raises(ExampleError, match="prompts: the chat template refused the messages"):
        encode_record(*marked, record(chosen="A car.", chat_template_kwargs={"tokenize": True}))
