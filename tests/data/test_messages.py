"""Prompts in all their forms."""

from __future__ import annotations

from mmbdhs.data import message_text


def test_the_text_of_a_message_leaves_images_out() -> None:
    image = {"type": "image", "text": None}  # as `datasets` brings parts of a column back, with every key
    parts = [image, {"type": "text", "text": "Two "}, {"type": "text", "text": "cats."}]
    for content in ("Two cats.", parts):
        assert message_text({"role": "user", "content": content}) == "Two cats."
