"""Token ids, cuts and swaps against what the chat template and tokenizer say themselves."""

from __future__ import annotations

import pytest
from helpers import tiny_models

from mmbdhs.data.keys import key_address
from mmbdhs.data.messages import as_messages, message_text
from mmbdhs.sampling.splicing import Reference
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_keeps_what_its_tokens_say(family: str, text: str) -> None:
    _, processor = getattr(tiny_models, family)()
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    reference = Reference(processor, turn, text)
    decode = processor.tokenizer.decode
    assert "".join(s.written.text for s in reference._sentences) == text
    for sentence in reference._sentences:
        for swapped in {False, sentence.swapped is not None}:
            variant = sentence.swapped if swapped else sentence.written
            for choice in range(len(variant.cuts)):
                cut = reference._cut(sentence, swapped, choice)
                assert cut.shared_length + len(cut.forced_ids) == variant.token_begin + cut.cut
                ids = (*turn.token_ids[: cut.shared_length], *cut.forced_ids)
                assert "".join(decode(ids).split()) == "".join((text[: sentence.begin] + cut.kept).split())


def test_a_swap_stays_in_its_sentence() -> None:
    _, processor = tiny_models.llava()
    text = "No, it is red. Yes, a dog. Nobody sits. no"
    turn = render_turn(processor, as_messages("Is it?", 1), text)
    reference = Reference(processor, turn, text)
    seen = set()
    for iteration in range(1, 60):
        cuts = reference.draw(0, 1, iteration)
        assert not cuts[2].swapped
        seen |= {(i, cut.swapped) for i, cut in enumerate(cuts)}
        for cut, word in zip(cuts, ("Yes", "No", None, "yes"), strict=True):
            assert text.startswith(cut.head[: cut.begin])  # everything before the sentence is as the reference has it
            if cut.swapped:
                assert cut.kept.startswith(word)
        joined = reference.join(cuts, [" …"] * 4)
        assert joined.count("…") == 4
    assert seen == {(0, False), (0, True), (1, False), (1, True), (2, False), (3, False), (3, True)}


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


def test_the_text_of_a_message_leaves_images_out() -> None:
    image = {"type": "image", "text": None}  # as `datasets` brings parts of a column back, with every key
    parts = [image, {"type": "text", "text": "Two "}, {"type": "text", "text": "cats."}]
    for content in ("Two cats.", parts):
        assert message_text({"role": "user", "content": content}) == "Two cats."


def test_keys_are_64_bit_addresses() -> None:
    assert [key_address(k) for k in (0, 2**63 - 1, 2**63, 2**64 - 1, -1)] == [0, 2**63 - 1, -(2**63), -1, -1]
    assert key_address("a") == key_address("a") != key_address("b")
