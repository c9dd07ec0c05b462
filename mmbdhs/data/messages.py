"""Prompts in the forms in which users have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mmbdhs.errors import ExampleError

Messages: TypeAlias = list[dict[str, Any]]


def as_messages(prompt: str | Messages, image_count: int, name: str = "prompts") -> Messages:
    """The prompt as messages: a string becomes a user turn with the images first.

    prompt: a string, or a message list with one placeholder for each image.
    image_count: number of the prompt's images.
    name: the caller's argument, for error messages.

    Raises ExampleError for a list without roles or with another number of placeholders.
    """
    if isinstance(prompt, str):
        content = [{"type": "image"}] * image_count + [{"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]
    given: Any = prompt
    if not isinstance(given, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in given):
        raise ExampleError(f"{name}: needs a string or a list of messages with a role, got {type(prompt).__name__}")
    contents = [message.get("content") or () for message in given]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    placeholders = sum(part.get("type") == "image" for part in parts)
    if placeholders != image_count:
        raise ExampleError(
            f"{name}: needs as many image placeholders as images, got {placeholders} for {image_count} image(s)"
        )
    return [dict(message) for message in given]


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or the text parts of its content."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")
