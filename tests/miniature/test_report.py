"""Marked text and the picture sheet, from hand-made samples."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmbdhs.miniature.report import SheetRow, highlight, masked_view, pieces, sheet


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


def test_visible_tokens_stay_bright_and_hidden_ones_dim():
    row = SheetRow(Image.new("RGB", (96, 96), "white"), "q", "c", sample("r", visible=(0, 9)), grid=(2, 5))
    pixels = np.asarray(masked_view(row)).astype(int)
    height, width = pixels.shape[:2]
    for token in range(10):
        y, x = int(height * (token // 5 + 0.5) / 2), int(width * (token % 5 + 0.5) / 5)
        assert (pixels[y, x].min() > 250) == (token in (0, 9))


@pytest.mark.parametrize("count", [1, 3])
def test_sheet_is_written(tmp_path, count):
    image = Image.new("RGB", (96, 96), "#88aacc")
    long = sample("word " * 120 + "x" * 400, visible=(1,))
    rows = [SheetRow(image, "Where?", "The cat is black.", s, (12, 12)) for s in (CAT, long, sample("", visible=()))]
    sheet(rows[:count], tmp_path / "sheet.png")
    page = Image.open(tmp_path / "sheet.png")
    assert page.width == 1400 and page.height > 250 * count
    assert (np.asarray(page)[40:200, -50:-30] == 255).all()  # no text at the right edge of a card


def test_sheet_needs_rows(tmp_path):
    with pytest.raises(ValueError, match="rows: needs at least one, got none"):
        sheet([], tmp_path / "sheet.png")
