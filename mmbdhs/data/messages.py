"""Images and prompts in the forms in which users have them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbdhs.errors import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image

Messages = list[dict[str, Any]]


def load_images(images: Any) -> list[Image]:
    """One image or a list of them, each a PIL image, a path, or encoded bytes, as RGB images."""
    several = images if isinstance(images, (list, tuple)) else [images]
    if not several or any(image is None for image in several):
        raise ExampleError(f"images: needs at least one image for each prompt, got {images!r}")
    return [_load_image(image) for image in several]


def _load_image(image: Any) -> Image:
    from PIL import Image as PILImage

    if isinstance(image, PILImage.Image):
        return image.convert("RGB")
    if not isinstance(image, (str, Path, bytes)):
        raise ExampleError(f"images: needs a PIL image, a path or encoded bytes, got {type(image).__name__}")
    try:
        with PILImage.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, PILImage.DecompressionBombError) as error:
        name = f"{len(image)} bytes" if isinstance(image, bytes) else repr(str(image))
        raise ExampleError(f"images: needs an image that can be decoded, got {name} ({error})") from error


def as_messages(prompt: str | Messages, image_count: int) -> Messages:
    """A string becomes a user turn with the images first; a message list is checked against the images."""
    if isinstance(prompt, str):
        content = [{"type": "image"}] * image_count + [{"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]
    if not isinstance(prompt, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in prompt):
        raise ExampleError(f"prompts: needs a string or a list of messages with a role, got {type(prompt).__name__}")
    placeholders = sum(
        part.get("type") == "image"
        for message in prompt
        if not isinstance(message.get("content"), str)
        for part in message.get("content") or ()
    )
    if placeholders != image_count:
        raise ExampleError(
            f"prompts: needs as many image placeholders as images, got {placeholders} for {image_count} image(s)"
        )
    return [dict(message) for message in prompt]


def message_text(message: Mapping[str, Any]) -> str:
    """What a message says: its content, or the text parts of its content."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")
