"""Marked text and the page of pairs, from hand-made samples."""

from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmbdhs.miniature.report import Card, highlight, masked_view, page
from mmbdhs.sampling import BDHSSample, SentenceSplice


def splice(reference: str, kept: str, completion: str, swapped: bool = False) -> SentenceSplice:
    return SentenceSplice(reference, swapped, 1, kept, completion, (), ())


def sample(rejected: str, *sentences: SentenceSplice, visible: tuple[int, ...] = ()) -> BDHSSample:
    return BDHSSample(0, rejected, 0.8125, 2, bool(sentences), visible, sentences)


CAT = sample(
    "The cat is red.  The cup is here.\nYes, there is a hat.",
    splice("The cat is black.  ", "The cat", " is red."),
    splice("The cup is here.\n", "The cup", " is here."),
    splice("No, there is no hat.", "Yes,", " there is a hat.", swapped=True),
)


def test_changed_words_are_marked() -> None:
    expected = "The cat is [[red]].  The cup is here.\n[[Yes]], there is [[a]] hat."
    assert highlight(CAT, color=False) == expected


def test_colour_and_its_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert highlight(CAT).startswith("The cat is \033[1;31mred\033[0m.")
    monkeypatch.setenv("NO_COLOR", "1")
    assert highlight(CAT) == highlight(CAT, color=False)


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
