"""Where a rejected response departs from its reference, from hand-made sentences."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mmbdhs.sampling import Piece, pieces
from mmbdhs.sampling.changes import _MOST_COMPARISONS

CAT = "The cat is red.  The cup is here.\nYes, there is a hat."
CAT_SENTENCES = [
    ("The cat is black.  ", "The cat is red."),
    ("The cup is here.\n", "The cup is here."),
    ("No, there is no hat.", "Yes, there is a hat."),
]


def marked(found: list[Piece]) -> str:
    return "".join(f"[{piece.text}]" if piece.changed else piece.text for piece in found)


def test_each_sentence_is_compared_with_its_own_reference() -> None:
    assert marked(pieces(CAT, CAT_SENTENCES)) == "The cat is [red].  The cup is here.\n[Yes], there is [a] hat."
    assert marked(pieces("A b. A c.", [("A b. ", "A b."), ("A b.", "A c.")])) == "A b. A [c]."


def test_a_response_without_sentences_is_compared_with_the_chosen_one() -> None:
    assert pieces("A dog.", []) == [Piece("A dog.", True)]
    assert marked(pieces("A red dog sits here.", [], "A cat sits there.")) == "A [red dog] sits [here]."
    assert pieces("A dog.", [], "A dog.") == [Piece("A dog.", False)]
    assert pieces("", [], "A dog.") == []


@given(st.lists(st.tuples(*[st.text(max_size=12)] * 2, st.sampled_from(["", " ", "\n", " \n "])), max_size=5))
def test_pieces_tile_the_response(parts: list[tuple[str, str, str]]) -> None:
    rejected = "".join(written + white for _, written, white in parts)
    found = pieces(rejected, [(reference + white, written) for reference, written, white in parts])
    assert "".join(piece.text for piece in found) == rejected
    assert all(piece.text for piece in found) or not rejected
    assert all(first.changed != second.changed for first, second in pairwise(found))


@given(st.text("ab \n.", max_size=40), st.text("ab \n.", max_size=40))
def test_what_is_unchanged_stands_in_the_chosen_response_in_order(chosen: str, rejected: str) -> None:
    left = chosen
    for piece in pieces(rejected, [], chosen):
        if not piece.changed and not piece.text.isspace():
            for character in "".join(piece.text.split()):
                assert character in left
                left = left.split(character, 1)[1]


def test_texts_of_thousands_of_words_differ_between_their_common_ends() -> None:
    words = int(_MOST_COMPARISONS**0.5) + 1
    chosen, rejected = (f"At first {word * words}and last." for word in ("a b ", "b c "))
    assert marked(pieces(rejected, [], chosen)) == f"At first [{'b c ' * words}]and last.".replace(" ]", "] ")
