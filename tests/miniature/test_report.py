"""Marked text and the page of pairs, from hand-made samples."""

from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmbdhs.miniature.report import Card, highlight, masked_view, page, pieces


def splice(reference, kept, completion, swapped=False):
    return SimpleNamespace(reference=reference, swapped=swapped, cut=1, kept=kept, completion=completion)


def sample(rejected, *sentences, visible=(), guided=True):
    return SimpleNamespace(
        rejected=rejected,
        sentences=sentences,
        similarity=0.8125,
        iterations=2,
        guided=guided,
        visible_image_tokens=visible,
    )


CAT = sample(
    "The cat is red.  The cup is here.\nYes, there is a hat.",
    splice("The cat is black.  ", "The cat", " is red."),
    splice("The cup is here.\n", "The cup", " is here."),
    splice("No, there is no hat.", "Yes,", " there is a hat.", swapped=True),
)


def test_changed_words_are_marked():
    expected = "The cat is [[red]].  The cup is here.\n[[Yes]], there is [[a]] hat."
    assert highlight(CAT, color=False) == expected


def test_colour_and_its_refusal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert highlight(CAT).startswith("The cat is \033[1;31mred\033[0m.")
    monkeypatch.setenv("NO_COLOR", "1")
    assert highlight(CAT) == highlight(CAT, color=False)


def test_an_unguided_response_is_all_new():
    assert highlight(sample("A dog.", guided=False), color=False) == "[[A dog.]]"


def test_repeated_sentences_keep_their_places():
    twice = sample("A b. A c.", splice("A b. ", "A", " b."), splice("A b.", "A", " c."))
    assert highlight(twice, color=False) == "A b. A [[c]]."


@given(st.lists(st.tuples(*[st.text(max_size=12)] * 3, st.sampled_from(["", " ", "\n", " \n "])), max_size=5))
def test_pieces_tile_the_response(parts):
    sentences = [splice(reference + white, kept, completion) for reference, kept, completion, white in parts]
    rejected = "".join(kept + completion + white for _, kept, completion, white in parts)
    assert "".join(piece.text for piece in pieces(sample(rejected, *sentences))) == rejected


def test_visible_tokens_stay_bright_and_hidden_ones_dim() -> None:
    card = Card(Image.new("RGB", (96, 96), "white"), "q", "c", sample("r", visible=(0, 7)), grid=3)
    pixels = np.asarray(masked_view(card)).astype(int)
    for token in range(9):
        y, x = (int(len(pixels) * (number + 0.5) / 3) for number in divmod(token, 3))
        assert (pixels[y, x].min() > 250) == (token in (0, 7))


class Texts(HTMLParser):
    """The texts of a page by their elements, and how many elements it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts, self.tags, self._open = {"dd": [], "mark": []}, Counter(), []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags[tag] += 1
        self._open.append(tag)
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open.remove(tag)

    def handle_data(self, data: str) -> None:
        for tag in self.texts:
            if tag in self._open:
                self.texts[tag][-1] += data


def test_the_page_shows_every_pair_and_marks_what_changed() -> None:
    image = Image.new("RGB", (96, 96), "#88aacc")
    odd = sample('<b>&amp; "it\'s"</b>', visible=(1,))
    found = Texts(page([Card(image, "Where?", "The cat is black.", one, 12) for one in (CAT, odd)]))
    assert found.tags["article"] == 2 and found.tags["img"] == 4 and not found.tags["b"]
    asked = ["Where?", "The cat is black."]
    assert found.texts["dd"] == [*asked, CAT.rejected, *asked, odd.rejected]
    assert found.texts["mark"] == ["red", "Yes", "a", odd.rejected]
