"""Conversations as LLaVA's data has them, lists of {"from": "human" or "gpt", "value": text}, as messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmbdhs.checks import kind_of
from mmbdhs.data.messages import Messages, message_text
from mmbdhs.errors import ExampleError, TextOnlyError

_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
# Chat templates write their own line breaks around an image.
_IMAGE = re.compile(r"\n*<image>\n*")


def objects(value: Any, column: str) -> list[Mapping[str, Any]]:
    """A list of objects, which may also be stored as an object of lists. Raises ExampleError for anything else."""
    if isinstance(value, Mapping):
        lengths = [len(item) for item in value.values() if isinstance(item, list)]
        value = [_entry(value, number) for number in range(max(lengths, default=0))]
    if not isinstance(value, (list, tuple)):
        raise ExampleError(f"{column}: needs a list of objects, got {kind_of(value)}")
    for item in value:
        if not isinstance(item, Mapping):
            raise ExampleError(f"{column}: needs a list of objects, got {kind_of(item)} in it")
    return list(value)


def conversation(value: Any, column: str, image_count: int) -> Messages:
    """The messages of a conversation. `<image>` in a turn of "human" becomes an image placeholder at that place; where
    none is written, the images come first.

    value: the turns.
    column: the column that holds them, for error messages.
    image_count: number of the row's images.

    Raises ExampleError for anything but turns, and where `<image>` is written for another number of images.
    """
    messages = [_message(turn, column) for turn in objects(value, column)]
    marks = placeholder_count(messages)
    if marks not in (0, image_count):
        raise ExampleError(
            f"{column}: needs <image> for each image or not at all, got it {marks} time(s) for {image_count} image(s)"
        )
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is None:
        raise ExampleError(f"{column}: needs a turn from human, got none")
    if not marks:
        first["content"] = [{"type": "image"}] * image_count + first["content"]
    return messages


def split_conversation(messages: Messages, turn: int, column: str) -> tuple[Messages, str]:
    """The messages before a turn of the assistant, and its text.

    turn: number of the assistant's turn, from 0; -1 for the last.

    Raises ExampleError if there is no such turn, or none of the user's right before it, and TextOnlyError if no image
    comes before it.
    """
    answers = answer_places(messages)
    if not -len(answers) <= turn < len(answers):
        raise ExampleError(f"{column}: needs {max(turn + 1, 1)} turn(s) from gpt, got {len(answers)}")
    end = answers[turn]
    before = messages[end - 1]["role"] if end else "no turn"
    if before != "user":
        raise ExampleError(f"{column}: needs a turn from human right before the chosen one, got {before}")
    if not placeholder_count(messages[:end]):
        raise TextOnlyError(f"{column}: needs an image before the chosen turn, got none")
    return messages[:end], message_text(messages[end])


def answer_places(messages: Messages) -> list[int]:
    """The indices of the assistant's messages."""
    return [place for place, message in enumerate(messages) if message["role"] == "assistant"]


def answer_count(value: Any) -> int:
    """The number of turns from gpt in a conversation; 1 for a broken one, so that it counts as one bad example."""
    try:
        return len(answer_places([_message(turn, "") for turn in objects(value, "")])) or 1
    except ExampleError:
        return 1


def placeholder_count(messages: Messages) -> int:
    """The number of image placeholders."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def _message(turn: Mapping[str, Any], column: str) -> dict[str, Any]:
    sender, text = turn.get("from"), turn.get("value")
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise ExampleError(f"{column}: needs turns from {', '.join(_ROLES)}, got {kind_of(sender)}")
    if not isinstance(text, str):
        raise ExampleError(f"{column}: needs text as the value of a turn, got {kind_of(text)}")
    return {"role": role, "content": _parts(text) if role == "user" else [{"type": "text", "text": text}]}


def _parts(text: str) -> list[dict[str, str]]:
    pieces = _IMAGE.split(text)
    parts = [[{"type": "image"}, {"type": "text", "text": piece}] for piece in pieces]
    return [part for pair in parts for part in pair if part.get("text") != ""][1:]


def _entry(columns: Any, number: int) -> Any:
    """An entry of an object of lists, at all depths."""
    if isinstance(columns, Mapping):
        return {name: _entry(item, number) for name, item in columns.items()}
    return columns[number] if isinstance(columns, list) and number < len(columns) else None
