"""Token ids, cuts and swaps against what the chat template and tokenizer say themselves."""

from __future__ import annotations

import copy

import pytest
from helpers import tiny_models
from helpers.plain import CHAT_FAMILIES, CHAT_TEXTS
from tokenizers import normalizers

from mmbdhs.data.messages import as_messages
from mmbdhs.errors import ExampleError
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
@pytest.mark.parametrize("text", ["e", "s", "im", "end", "a", "/", "assistant", "ASSISTANT:", "user", "start", "USER"])
def test_a_response_that_occurs_in_the_frame_is_found_where_it_begins(family: str, text: str) -> None:
    """`<|im_end|>` contains "end" and "im", `</s>` contains "s", and the header of the turn "assistant"."""
    _, processor = getattr(tiny_models, family)()
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    assert turn.start < turn.opening + 2 and turn.text[turn.start :].startswith(text)
    assert processor.tokenizer.decode(turn.token_ids).strip() == text
    assert processor.tokenizer.decode(turn.closing_ids).strip() in ("</s>", "<|im_end|>")


@pytest.mark.parametrize("text", ["think", "a", "k", "</", "The cat.", "0response0", "a 0response0 b"])
def test_a_response_is_found_after_what_the_template_writes_first(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates of reasoning models open each turn with an empty block of thoughts."""
    _, processor = tiny_models.llava()
    opened = processor.chat_template.replace(
        "{% if message['content'] is string",
        "{{ '<think>\n\n</think>\n\n' if message['role'] == 'assistant' }}{% if message['content'] is string",
    )
    monkeypatch.setattr(processor, "chat_template", opened)
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    assert turn.text[turn.start :] == f"{text}</s>"
    assert processor.tokenizer.decode(turn.own_ids).strip() == text
    assert processor.tokenizer.decode(turn.token_ids).split() == f"<think> </think> {text}".split()


def test_thoughts_that_the_generation_prompt_opens_belong_to_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of `<think>` are part of the prompt then; the text still begins with it."""
    _, processor = tiny_models.llava()
    template = processor.chat_template.replace("ASSISTANT:{%", "ASSISTANT: <think>\n{%")
    monkeypatch.setattr(processor, "chat_template", template)
    text = "<think>\nA cat?\n</think>\nA dog."
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    assert turn.text[turn.start :] == f"{text}</s>" and turn.text[: turn.opening].endswith("ASSISTANT: <think>\n")
    assert processor.tokenizer.decode(turn.token_ids) == text.removeprefix("<think>\n")


def test_a_template_that_changes_the_response_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = tiny_models.llava()
    template = processor.chat_template.replace("{{ part['text'] }}", "{{ part['text'] | upper }}")
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(ExampleError, match=r"references: the chat template must keep the text, 'A cat\.' became"):
        render_turn(processor, as_messages("WHAT?", 1), "A cat.")


def test_a_response_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokenizers drop characters such as marks of direction."""
    _, processor = copy.deepcopy(tiny_models.llava())
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200e", "")
    with pytest.raises(ExampleError, match="references: needs text that the tokenizer has tokens for"):
        render_turn(processor, as_messages("What?", 1), "\u200e")
