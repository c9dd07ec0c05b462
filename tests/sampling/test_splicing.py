"""Cuts and swaps against what the tokenizer says itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import tiny_models
from helpers.plain import CHAT_FAMILIES, CHAT_TEXTS

from mmbdhs.data.messages import as_messages
from mmbdhs.errors import ExampleError
from mmbdhs.sampling.sentence_tokens import ReferenceTokens
from mmbdhs.sampling.splicing import Reference
from mmbdhs.vlm.chat_processor import Turn, render_turn

TAGGED = [
    "<think>\nThe image shows a car. Yes.\n</think>\n\nNo, a red car.<br>\nIt.",
    "<answer>Yes</answer>",
    "<answer>No.</answer>\n",
    " \u200b◁think▷狗。◁/think▷[THINK]No[/THINK] ",
]


def referenced(family: str, text: str) -> tuple[Any, Turn, Reference]:
    _, processor = getattr(tiny_models, family)()
    turn = render_turn(processor, as_messages("What is it?", 1), text)
    return processor, turn, Reference(processor, turn, text)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("text", [*CHAT_TEXTS, *TAGGED])
def test_every_cut_keeps_what_its_tokens_say(family: str, text: str) -> None:
    processor, turn, reference = referenced(family, text)
    decode, before = processor.tokenizer.decode, ""
    for sentence in reference._sentences:
        for swapped in {False, sentence.swapped is not None}:
            variant = sentence.swapped if swapped else sentence.written
            for choice in range(len(variant.cuts)):
                cut = reference._cut(sentence, swapped, choice)
                assert cut.shared_length + len(cut.forced_ids) == variant.token_begin + cut.cut
                ids = (*turn.token_ids[: cut.shared_length], *cut.forced_ids)
                assert ids == cut.prefix_ids and ids[-3:] == cut.last_ids(3) and cut.last_ids(0) == ()
                assert "".join(decode(ids).split()) == "".join((before + cut.kept).split())
        before += sentence.text
    assert before == text


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("text", TAGGED)
def test_gaps_stay_as_they_are(family: str, text: str) -> None:
    """No cut falls inside markup, and the joined text has all of it."""
    _, _, reference = referenced(family, text)
    markup = re.compile(r"<[^>]+>|◁[^▷]+▷|\[[^]]+\]|\s+|\u200b")
    for iteration in range(1, 30):
        cuts = reference.draw(0, 1, iteration)
        for cut, sentence in zip(cuts, reference._sentences, strict=True):
            assert cut.kept.startswith(sentence.text[: sentence.gap])
            assert cut.keeps_content == (len(cut.kept) > sentence.gap)
        joined = reference.join(cuts, ["…"] * len(cuts))
        assert markup.findall(re.sub(" ", "", joined)) == markup.findall(re.sub(" ", "", text))


def test_cuts_by_hand() -> None:
    """A token that holds the end of a gap and the beginning of a sentence is kept whole."""
    _, processor = tiny_models.llava()

    def kept(*spans: tuple[int, int], text: str) -> list[set[str]]:
        turn = Turn(text, 0, 0, tuple(range(len(spans))), spans, ())
        reference = Reference(processor, turn, text)
        return [
            {reference._cut(sentence, False, choice).kept for choice in range(len(sentence.written.cuts))}
            for sentence in reference._sentences
        ]

    assert kept((0, 2), (2, 3), (3, 6), text="<b>Dog") == [{"<b>"}]
    assert kept((0, 2), (2, 4), (4, 6), text="<b>Dog") == [{"<b>D"}]
    assert kept((0, 2), (2, 6), text="<b>Dog") == [{"<b>Dog"}]
    assert kept((0, 3), (3, 4), (4, 6), (6, 7), text="<b>Dog.") == [{"<b>D", "<b>Dog"}]
    assert kept((0, 2), (2, 5), (5, 6), text="A\nCat.") == [{""}, {"Cat"}]
    assert kept((0, 1), (1, 4), (5, 6), text="A<b>\nC") == [{""}, {""}]
    assert kept((0, 1), (1, 6), text="A<b>\nC") == [{""}, {"C"}]
    assert kept((0, 1), (2, 5), (5, 8), text="犬\n<b>cat") == [{""}, {""}]


@pytest.mark.parametrize("text", ["<think></think>", " \n<br>", "◁think▷\u200b"])
def test_a_reference_needs_content(text: str) -> None:
    with pytest.raises(ExampleError, match="references: needs text besides markup and white space, got"):
        referenced("llava", text)


def test_a_swap_stays_in_its_sentence() -> None:
    text = "No, it is red. Yes, a dog. Nobody sits. no"
    _, _, reference = referenced("llava", text)
    seen = set()
    for iteration in range(1, 60):
        cuts = reference.draw(0, 1, iteration)
        assert not cuts[2].swapped
        seen |= {(i, cut.swapped) for i, cut in enumerate(cuts)}
        assert "".join(cut.reference for cut in cuts) == text
        for cut, word in zip(cuts, ("Yes", "No", None, "yes"), strict=True):
            if cut.swapped:
                assert cut.kept.startswith(word)
        joined = reference.join(cuts, [" …"] * 4)
        assert joined.count("…") == 4
    assert seen == {(0, False), (0, True), (1, False), (1, True), (2, False), (3, False), (3, True)}


LONG_TEXTS = [
    "There are two people. No, it is not! A dog sits there, e.g. a small one. Yes, the sky is blue. " * 8,
    "狗。猫很大！ No。是的。 Yes, it is größer 🐕.\n\nno\n" * 15,
    "The image shows a red car. " * 40 + "Yes.yes\nno. No",
    "<b>Yes</b>\n" * 60,
]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("text", LONG_TEXTS)
def test_a_window_gives_the_tokens_of_the_whole_text(family: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, by_window = referenced(family, text)
    near = ReferenceTokens._near
    found = []
    monkeypatch.setattr(ReferenceTokens, "_near", lambda *arguments: found.append(near(*arguments)))
    _, _, plain = referenced(family, text)
    assert by_window._sentences == plain._sentences
    assert sum(row is not None for row in found) >= 3


def test_a_window_that_stays_out_of_step_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, expected = referenced("llava", LONG_TEXTS[0])
    monkeypatch.setattr("mmbdhs.sampling.sentence_tokens.common_length", lambda first, second: 0)
    _, _, reference = referenced("llava", LONG_TEXTS[0])
    assert [s.swapped and s.swapped.cuts for s in reference._sentences] == [
        s.swapped and s.swapped.cuts for s in expected._sentences
    ]


def test_work_grows_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the text has about twice as many characters tokenised."""
    _, processor = tiny_models.llava()
    read = 0

    def counting(text: str, **options: Any) -> Any:
        nonlocal read
        read += len(text)
        return tokenize(text, **options)

    tokenize, counts = processor.tokenizer.__call__, []
    for count in (100, 200):
        text = "".join(f"Yes it is {number}. " for number in range(100, 100 + count)).strip()
        turn = render_turn(processor, as_messages("What is it?", 1), text)
        monkeypatch.setattr("mmbdhs.vlm.chat_processor.tokenizer_of", lambda _: counting)
        read = 0
        Reference(processor, turn, text)
        counts.append(read)
        monkeypatch.undo()
    assert counts[1] < 2.5 * counts[0]
