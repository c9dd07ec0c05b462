"""Where a rejected response departs from its reference, from hand-made sentences."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbdhs.sampling import BDHSSample, Piece, SentenceSplice, pieces
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


class Marks(HTMLParser):
    """The tags, the whole text and the marked texts of a fragment."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.tags, self.text, self.marks, self._open = set(), "", [], False
        self.feed(fragment)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.add(tag)
        self._open = tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        self.text += data
        self.marks += [data] if self._open else []


def splice(reference: str, written: str) -> SentenceSplice:
    return SentenceSplice(reference, False, 1, written[:3], written[3:], (), ())


def test_a_sample_shows_itself_in_a_notebook() -> None:
    sentences = tuple(splice(*pair) for pair in CAT_SENTENCES)
    sample = BDHSSample("k", CAT, 0.8125, 2, True, (3, 5), sentences, image_tokens=2928)
    shown = Marks(sample._repr_html_())
    assert shown.marks == ["red", "Yes", "a"]
    assert shown.text == f"{CAT}similarity 0.812 · iteration 2 · guided · 2 of 2,928 image tokens visible"


@pytest.mark.parametrize("hostile", ["</div><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b&gt;"])
def test_a_response_cannot_write_html(hostile: str) -> None:
    noisy = BDHSSample(0, hostile, 0.5, 5, False, (), response_ids=(1,), noise_steps=500, noise_range="clip")
    shown = Marks(noisy._repr_html_())
    assert shown.tags == {"div", "mark"} and shown.marks == [hostile]
    assert shown.text.endswith("iteration 5 · unguided · noise N = 500")
