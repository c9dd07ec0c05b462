"""Cuts and swaps against what the tokenizer says itself."""

from __future__ import annotations

import pytest
from helpers import tiny_models
from helpers.plain import CHAT_FAMILIES, CHAT_TEXTS

from mmbdhs.data.messages import as_messages
from mmbdhs.sampling.splicing import Reference
from mmbdhs.vlm.chat_processor import render_turn


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("text", CHAT_TEXTS)
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
            if cut.swapped:
                assert cut.kept.startswith(word)
        joined = reference.join(cuts, [" …"] * 4)
        assert joined.count("…") == 4
    assert seen == {(0, False), (0, True), (1, False), (1, True), (2, False), (3, False), (3, True)}
