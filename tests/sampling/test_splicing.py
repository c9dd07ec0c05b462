"""Cuts and swaps against what the tokenizer says itself."""

from __future__ import annotations

import pytest
from helpers import tiny_models

from mmbdhs.data.messages import as_messages
from mmbdhs.sampling.splicing import Reference
from mmbdhs.vlm.chat_processor import render_turn

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
