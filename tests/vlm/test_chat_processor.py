"""Token ids, cuts and swaps against what the chat template and tokenizer say themselves."""

from __future__ import annotations

import pytest
from helpers import tiny_models

from mmbdhs.data.messages import as_messages
from mmbdhs.vlm.chat_processor import decode_after, render_turn

FAMILIES = ["llava", "llava_llama", "qwen2_5_vl"]
TEXTS = [
    "The image shows a red car.",
    "  No, it is not!\n\nYes.  ",
    "Ein größerer Hund — 狗。猫很大！ 🐕 end",
    "a",
    "1. The cat\n2. The dog",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["e", "s", "im", "end", "a", "/"])
def test_a_response_that_occurs_in_the_closing_tokens_is_found_where_it_begins(family: str, text: str) -> None:
    """`<|im_end|>` contains "end" and "im", `</s>` contains "s"."""
    _, processor = getattr(tiny_models, family)()
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    assert turn.start < turn.opening + 2 and turn.text[turn.start :].startswith(text)
    assert processor.tokenizer.decode(turn.token_ids).strip() == text
    assert processor.tokenizer.decode(turn.closing_ids).strip() in ("</s>", "<|im_end|>")
