"""Rejected responses for human eyes: marked text for the terminal, and a sheet of pictures and pairs as PNG."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_RED, _PLAIN = "\033[1;31m", "\033[0m"


@dataclass(frozen=True)
class Piece:
    """A stretch of a rejected response, and whether it departs from the reference."""

    text: str
    changed: bool


def pieces(sample: Any) -> list[Piece]:
    """The rejected response of a `BDHSSample` in stretches that tile it, changed and unchanged words apart.

    Each sentence is compared with its own reference sentence, word by word. An unguided response has no sentences to
    compare with: all of it is changed.
    """
    if not sample.sentences:
        return [Piece(sample.rejected, True)]
    found: list[Piece] = []
    begin = 0
    for number, sentence in enumerate(sample.sentences, 1):
        end = begin + len(sentence.kept + sentence.completion)
        while end < len(sample.rejected) and sample.rejected[end].isspace():
            end += 1
        if number == len(sample.sentences):
            end = len(sample.rejected)
        found += _compared(sentence.reference, sample.rejected[begin:end])
        begin = end
    return found


def _compared(reference: str, text: str) -> list[Piece]:
    before, after = _WORDS.findall(reference), _WORDS.findall(text)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    parts = [("".join(after[b:e]), tag != "equal") for tag, _, _, b, e in matcher.get_opcodes()]
    return [Piece(part, changed and not part.isspace()) for part, changed in parts if part]


def highlight(sample: Any, color: bool = True) -> str:
    """A `BDHSSample`'s rejected response with the changed words in red, or [[marked]] where colour is not wanted:
    `color` False, or NO_COLOR set in the environment."""
    coloured = color and not os.environ.get("NO_COLOR")
    left, right = (_RED, _PLAIN) if coloured else ("[[", "]]")
    return "".join(f"{left}{piece.text}{right}" if piece.changed else piece.text for piece in pieces(sample))


@dataclass(frozen=True)
class SheetRow:
    """One pair on the sheet.

    image: as the model saw it, resized and cropped. question, chosen: texts. sample: a `BDHSSample`.
    grid: rows and columns of image tokens over the image.
    """

    image: Image.Image
    question: str
    chosen: str
    sample: Any
    grid: tuple[int, int]


_WIDTH, _MARGIN, _GAP = 1400, 28, 24
_PICTURE = 232
_TEXT_LEFT = _MARGIN + 2 * (_PICTURE + _GAP)
_PAPER, _CARD, _INK, _FAINT, _CHANGED = "#f4f2ee", "#ffffff", "#1d2026", "#7c8088", "#cf2233"
_TEXT_SIZE, _LABEL_SIZE, _LINE = 20, 14, 29


def sheet(rows: Sequence[SheetRow], path: str | os.PathLike) -> None:
    """Write pairs as one PNG of 1400 pixels width, a row each: the image; the image with hidden tokens dimmed and
    visible ones outlined; question, chosen and rejected, changed words in red; similarity and iteration.

    Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("rows: needs at least one, got none")
    cards = [_card(row) for row in rows]
    height = sum(card.height for card in cards) + _MARGIN * (len(cards) + 1)
    page, top = Image.new("RGB", (_WIDTH, height), _PAPER), _MARGIN
    for card in cards:
        page.paste(card, (_MARGIN, top))
        top += card.height + _MARGIN
    page.save(path, format="PNG", optimize=True)


def _card(row: SheetRow) -> Image.Image:
    """A row at its own height: texts are laid out once to measure, once to draw."""
    measured = _write_texts(ImageDraw.Draw(Image.new("RGB", (1, 1))), row)
    height = max(measured, _PICTURE + _LABEL_SIZE + 8) + 2 * _GAP
    card = Image.new("RGB", (_WIDTH - 2 * _MARGIN, height), _CARD)
    draw = ImageDraw.Draw(card)
    views = (("image", _enlarged(row.image)), ("what the sampler saw", masked_view(row)))
    for number, (label, view) in enumerate(views):
        left = _GAP + number * (_PICTURE + _GAP)
        card.paste(view, (left, _GAP))
        draw.text((left, _GAP + _PICTURE + 8), label, _FAINT, ImageFont.load_default(_LABEL_SIZE))
    _write_texts(draw, row)
    return card


def _enlarged(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)


def masked_view(row: SheetRow) -> Image.Image:
    """The enlarged image with every hidden image token dimmed and every visible one outlined."""
    bright = _enlarged(row.image)
    view = Image.blend(bright, Image.new("RGB", bright.size, "#20242c"), 0.72)
    draw = ImageDraw.Draw(view)
    rows, columns = row.grid
    for token in row.sample.visible_image_tokens:
        y, x = divmod(token, columns)
        box = (_edge(x, columns), _edge(y, rows), _edge(x + 1, columns), _edge(y + 1, rows))
        view.paste(bright.crop(box), box[:2])
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="#ffb000", width=2)
    return view


def _edge(number: int, count: int) -> int:
    return round(_PICTURE * number / count)


def _write_texts(draw: ImageDraw.ImageDraw, row: SheetRow) -> int:
    """Write question, chosen, rejected and the figures of a row; returns their height in pixels."""
    sample = row.sample
    iterations = f"iteration {sample.iterations}" + ("" if sample.guided else ", without guidance")
    blocks = [
        ("question", [Piece(row.question, False)]),
        ("chosen", [Piece(row.chosen, False)]),
        ("rejected", pieces(sample)),
    ]
    top = _GAP
    for label, stretches in blocks:
        draw.text((_TEXT_LEFT, top), label, _FAINT, ImageFont.load_default(_LABEL_SIZE))
        top = _flow(draw, stretches, top + _LABEL_SIZE + 5) + 10
    figures = f"similarity {sample.similarity:.3f}   ·   {iterations}"
    draw.text((_TEXT_LEFT, top), figures, _FAINT, ImageFont.load_default(_LABEL_SIZE))
    return top + _LABEL_SIZE - _GAP


def _flow(draw: ImageDraw.ImageDraw, stretches: list[Piece], top: int) -> int:
    """Write words one after the other, with line breaks where needed; returns the y below the last line."""
    font, right = ImageFont.load_default(_TEXT_SIZE), _WIDTH - 2 * _MARGIN - _GAP
    x: float = _TEXT_LEFT
    for word in chain.from_iterable(_fitting(word, font, right - _TEXT_LEFT) for word in _glued(stretches)):
        if x > _TEXT_LEFT and x + font.getlength("".join(part.text for part in word).rstrip()) > right:
            x, top = _TEXT_LEFT, top + _LINE
        for part in word:
            draw.text((x, top), part.text, _CHANGED if part.changed else _INK, font)
            x += font.getlength(part.text)
    return top + _LINE


def _glued(stretches: list[Piece]) -> list[list[Piece]]:
    """Words with a space after each, as their parts: lines break between words."""
    words: list[list[Piece]] = [[]]
    for stretch in stretches:
        for text in re.findall(r"\s+|\S+", stretch.text):
            words[-1].append(Piece(" " if text.isspace() else text, stretch.changed))
            if text.isspace():
                words.append([])
    return [word for word in words if word]


def _fitting(word: list[Piece], font: ImageFont.FreeTypeFont, width: float) -> list[list[Piece]]:
    """The word, or its characters one by one if it is wider than a line, as text without spaces may be."""
    if font.getlength("".join(part.text for part in word).rstrip()) <= width:
        return [word]
    return [[Piece(character, part.changed)] for part in word for character in part.text]
