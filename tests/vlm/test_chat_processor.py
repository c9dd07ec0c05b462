"""Token ids, cuts and swaps against what the chat template and tokenizer say themselves."""

from __future__ import annotations

import pytest
from helpers import tiny_models
from helpers.plain import CHAT_FAMILIES, CHAT_TEXTS

from mmbdhs.data.messages import as_messages
from mmbdhs.vlm.chat_processor import decode_after, render_turn


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("text", CHAT_TEXTS)
def test_reference_ids_are_those_of_the_conversation(family: str, text: str) -> None:
    """Prompt + reference + closing tokens make up what apply_chat_template itself tokenises."""
    _, processor = getattr(tiny_models, family)()
    messages = as_messages("What is it?", 1)
    turn = render_turn(processor, messages, text)
    answer = [*messages, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    ids = [
        processor.tokenizer(processor.apply_chat_template(m, tokenize=False, add_generation_prompt=g))["input_ids"]
        for m, g in ((messages, True), (answer, False))
    ]
    end = len(ids[1]) - len(turn.closing_ids)
    assert (*ids[0], *turn.token_ids) == tuple(ids[1][:end])
    assert processor.tokenizer.decode(turn.token_ids).strip() == text.strip()


def test_decoding_after_a_context_keeps_spaces_and_characters() -> None:
    _, processor = tiny_models.llava()
    words = processor.tokenizer
    ids = words("The cat, größer 狗 dog.")["input_ids"]
    for cut in range(len(ids)):
        if "\ufffd" not in words.decode(ids[:cut]):
            assert words.decode(ids[:cut]) + decode_after(words, ids[:cut], ids[cut:]) == words.decode(ids)


def test_plain_string_messages_are_kept_plain() -> None:
    _, processor = tiny_models.llava()
    messages = as_messages([{"role": "user", "content": "Hello"}], 0)
    assert render_turn(processor, messages, "Hi.").text == "USER: Hello ASSISTANT: Hi.</s>"
    with pytest.raises(ValueError, match="image placeholders"):
        as_messages([{"role": "user", "content": "Hello"}], 1)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("text", ["e", "s", "im", "end", "a", "/"])
def test_a_response_that_occurs_in_the_closing_tokens_is_found_where_it_begins(family: str, text: str) -> None:
    """`<|im_end|>` contains "end" and "im", `</s>` contains "s"."""
    _, processor = getattr(tiny_models, family)()
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    assert turn.start < turn.opening + 2 and turn.text[turn.start :].startswith(text)
    assert processor.tokenizer.decode(turn.token_ids).strip() == text
    assert processor.tokenizer.decode(turn.closing_ids).strip() in ("</s>", "<|im_end|>")
