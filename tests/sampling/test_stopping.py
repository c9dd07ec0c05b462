"""Sentences end after the token after which the plain rule says so."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmbdhs.native.sentence_rule import end_of_sentence
from mmbdhs.sampling.splicing import Cut
from mmbdhs.sampling.stopping import ResponseStops, SentenceBranch

MARKS = '. ! ? … 。 । ؟ ، .. : ( , ) " * | - No No. 7 1. 2. Mr etc a cat I The é 猫'
TAGS = "<think> </b> <|x|> ◁think▷ [/THINK] < </ <a > ◁ ▷ ◁/think [THI NK] <a=x."
SPACED = (*[" "] * 6, "\n", "\u200b", " cat", " The", ". ", ". The", "x" * 40)
WORDS = (*MARKS.split(), *TAGS.split(), *SPACED)
END = len(WORDS)


class Tokenizer:
    """Each token is a piece of text; the last one ends a response."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(WORDS[i] for i in ids if i < END)


def branch_of(kept: str, limit: int) -> SentenceBranch:
    cut = Cut("", False, 0, kept, keeps_content=True, reference_ids=(), shared_length=0, forced_ids=())
    return SentenceBranch(prefix_length=0, limit=limit, context_ids=(), cut=cut)


TOKENS = st.lists(st.integers(0, END), min_size=1, max_size=14)


@settings(max_examples=600, deadline=None)
@given(TOKENS, TOKENS)
@example([WORDS.index("No.")], [WORDS.index("The")])
@example([WORDS.index("<a=x."), WORDS.index(" ")], [WORDS.index("cat"), WORDS.index("<")])
def test_a_sentence_ends_after_the_first_token_that_the_rule_lets_end(before: list[int], tokens: list[int]) -> None:
    tokenizer = Tokenizer()
    stops, kept = ResponseStops(tokenizer, {END}), tokenizer.decode(before)
    branch = branch_of(kept, len(tokens))
    for count, token in enumerate(tokens, 1):
        branch.ids.append(token)
        (ended,) = stops([branch])
        text = kept + tokenizer.decode(tokens[:count])
        end = end_of_sentence(text.encode(), final=token == END or count == len(tokens))
        assert ended == (end >= 0)
        if ended:
            expected = text.encode()[len(kept.encode()) : end].decode()
            assert branch.text == expected
            assert tokenizer.decode(branch.ids).startswith(expected)
            assert not branch.ids or len(tokenizer.decode(branch.ids[:-1])) < len(expected)
            return


def test_gaps_before_a_sentence_are_the_references_own() -> None:
    tokenizer = Tokenizer()
    for keeps_content, text in ((False, "cat."), (True, " </b>\ncat.")):
        cut = Cut("", False, 0, "", keeps_content, reference_ids=(), shared_length=0, forced_ids=())
        branch = SentenceBranch(prefix_length=0, limit=9, context_ids=(), cut=cut)
        for piece in (" ", "</b>", "\n", "cat", ".", " ", "The"):
            branch.ids.append(WORDS.index(piece))
            if ResponseStops(tokenizer, {END})([branch]) == [True]:
                break
        assert branch.text == text and tokenizer.decode(branch.ids) == " </b>\ncat."
