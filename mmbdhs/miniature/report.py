"""Rejected responses for human eyes: marked text for the terminal, and a page of images and pairs as HTML."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw

from mmbdhs.sampling import BDHSSample

_RED, _PLAIN = "\033[1;31m", "\033[0m"
_SIDE = 240  # pixels of an image on the page
_STYLE = """body{margin:28px;background:#f4f2ee;color:#1d2026;font:17px/1.5 system-ui,sans-serif}
article{display:flex;gap:22px;max-width:1080px;margin:0 auto 20px;padding:20px;background:#fff;border-radius:8px}
img{width:240px;height:240px;image-rendering:pixelated;flex:none}
dt{color:#7c8088;font-size:13px}dd{margin:0 0 8px}mark{background:none;color:#cf2233;font-weight:600}"""


def highlight(sample: BDHSSample, color: bool = True) -> str:
    """The rejected response with the changed words in red, or [[marked]] where colour is not wanted.

    color: False, or NO_COLOR in the environment, for marks in place of colour.
    """
    coloured = color and not os.environ.get("NO_COLOR")
    left, right = (_RED, _PLAIN) if coloured else ("[[", "]]")
    return "".join(f"{left}{piece.text}{right}" if piece.changed else piece.text for piece in sample.pieces())


@dataclass(frozen=True)
class Card:
    """One pair on the page.

    image: as the model saw it, resized and cropped.
    question, chosen: texts.
    sample: the rejected response.
    grid: number of image tokens along each side of the image.
    """

    image: Image.Image
    question: str
    chosen: str
    sample: BDHSSample
    grid: int


def page(cards: Sequence[Card]) -> str:
    """A self-contained HTML page with a card for each pair: the image, the image with its hidden tokens dimmed and its
    visible tokens outlined, question, chosen and rejected response with the changed words marked."""
    body = "\n".join(map(_card, cards))
    return f"<!doctype html>\n<meta charset='utf-8'>\n<title>mmbdhs</title>\n<style>{_STYLE}</style>\n{body}\n"


def _card(card: Card) -> str:
    marked = "".join(
        f"<mark>{escape(piece.text)}</mark>" if piece.changed else escape(piece.text) for piece in card.sample.pieces()
    )
    figures = f"similarity {card.sample.similarity:.2f}, iteration {card.sample.iterations}"
    rows = (("asked", escape(card.question)), ("chosen", escape(card.chosen)), (f"rejected ({figures})", marked))
    texts = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    views = "".join(f"<img src='{_data_url(view)}' alt=''>" for view in (card.image, masked_view(card)))
    return f"<article>{views}<dl>{texts}</dl></article>"


def masked_view(card: Card) -> Image.Image:
    """The enlarged image with every hidden image token dimmed and every visible one outlined."""
    bright = card.image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    view = Image.blend(bright, Image.new("RGB", bright.size, "#20242c"), 0.72)
    draw = ImageDraw.Draw(view)
    edges = [round(_SIDE * number / card.grid) for number in range(card.grid + 1)]
    for token in card.sample.visible_image_tokens:
        y, x = divmod(token, card.grid)
        box = (edges[x], edges[y], edges[x + 1], edges[y + 1])
        view.paste(bright.crop(box), box[:2])
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="#ffb000", width=2)
    return view


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
