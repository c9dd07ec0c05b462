"""Prompts and responses in the forms in which users have them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mmbdhs.errors import ExampleError

Messages: TypeAlias = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt with what else its chat template takes, as in the columns that TRL reads.

    messages: a string, or a message list.
    tools: JSON schemas of the tools that the model may call; None for none.
    chat_template_kwargs: further variables of the template, such as enable_thinking.
    """

    messages: str | Messages
    tools: list[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ChatPrompt:
        """The prompt of a record with the columns prompt and, where there are any, tools and chat_template_kwargs."""
        return cls(record["prompt"], record.get("tools"), record.get("chat_template_kwargs"))

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What `apply_chat_template` takes besides the messages."""
        arguments = dict(self.chat_template_kwargs or {})
        return arguments if self.tools is None else arguments | {"tools": self.tools}


Prompt: TypeAlias = str | Messages | ChatPrompt


def as_chat(prompt: Prompt, image_count: int, name: str = "prompts") -> ChatPrompt:
    """The prompt in its full form, with a message list.

    prompt: a string, which becomes a user turn with the images first; a message list with one placeholder for each
        image; or a ChatPrompt with either.
    image_count: number of the prompt's images.
    name: the caller's argument, for error messages.

    Keys with the value None are dropped, because Arrow gives each message all keys of all messages. Raises ExampleError
    for messages that are not a conversation of roles with text and image parts that ends before the assistant's turn,
    and for another number of image placeholders.
    """
    chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt(prompt)
    messages = _prompt_messages(chat.messages, image_count, name)
    return ChatPrompt(messages, _tools(chat.tools), _template_kwargs(chat.chat_template_kwargs))


def as_messages(prompt: Prompt, image_count: int, name: str = "prompts") -> Messages:
    """The messages of `as_chat`."""
    messages: Any = as_chat(prompt, image_count, name).messages
    return messages


def as_response(response: str | Messages, name: str) -> str | Messages:
    """A response as its text, or as messages where one assistant turn of text does not say it all.

    response: a string, or a list of messages that begins and ends with an assistant turn.
    name: the caller's argument or column, for error messages.

    Raises ExampleError for anything else, and for an empty response.
    """
    messages = [{"role": "assistant", "content": response}] if isinstance(response, str) else _messages(response, name)
    roles = [message["role"] for message in messages]
    if not roles or roles[0] != "assistant" or roles[-1] != "assistant":
        raise ExampleError(f"{name}: needs messages that begin and end with the assistant's, got {roles or 'none'}")
    if _image_count(messages):
        raise ExampleError(f"{name}: needs a response of text, got an image part in it")
    if not all(message_text(message).strip() for message in messages if message["role"] == "assistant"):
        raise ExampleError(f"{name}: needs text, got {response!r}")
    is_text = len(messages) == 1 and messages[0].keys() == {"role", "content"}
    return message_text(messages[0]) if is_text else messages


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or the text parts of its content."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def without_nulls(value: Any) -> Any:
    """The value without the keys of its mappings that are None, at all depths."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def _prompt_messages(prompt: Any, image_count: int, name: str) -> Messages:
    if isinstance(prompt, str):
        content = [{"type": "image"}] * image_count + [{"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]
    messages = _messages(prompt, name)
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] == "assistant":
        raise ExampleError(f"{name}: needs messages that end before the assistant's turn, got {roles or 'none'}")
    if (placeholders := _image_count(messages)) != image_count:
        raise ExampleError(
            f"{name}: needs as many image placeholders as images, got {placeholders} for {image_count} image(s)"
        )
    return messages


def _messages(given: Any, name: str) -> Messages:
    if not isinstance(given, Sequence) or not all(isinstance(message, Mapping) for message in given):
        raise ExampleError(f"{name}: needs a string or a list of messages with a role, got {type(given).__name__}")
    messages = [without_nulls(message) for message in given]
    for message in messages:
        if message.get("role") not in ROLES:
            raise ExampleError(f"{name}: needs messages with a role of {', '.join(ROLES)}, got {message.get('role')!r}")
        _check_content(message, name)
    return messages


def _check_content(message: dict[str, Any], name: str) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and "tool_calls" in message):
        return
    if not isinstance(content, list):
        raise ExampleError(f"{name}: needs content that is text or a list of parts, got {type(content).__name__}")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "image" and not (kind == "text" and isinstance(part.get("text"), str)):
            raise ExampleError(
                f'{name}: needs parts {{"type": "text", "text": "…"}} and {{"type": "image"}}, got one of type {kind!r}'
            )


def _image_count(messages: Messages) -> int:
    contents = [message.get("content") for message in messages]
    return sum(part["type"] == "image" for content in contents if isinstance(content, list) for part in content)


def _tools(tools: Any) -> list[Any] | None:
    tools = _from_json("tools", tools)
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise ExampleError(f"tools: needs a list of JSON schemas, got {type(tools).__name__}")
    return [without_nulls(tool) for tool in tools] if tools else None


def _template_kwargs(arguments: Any) -> dict[str, Any] | None:
    arguments = _from_json("chat_template_kwargs", arguments)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ExampleError(f"chat_template_kwargs: needs an object, got {type(arguments).__name__}")
    return without_nulls(arguments) if arguments else None


def _from_json(name: str, value: Any) -> Any:
    """The value of a column that may be stored as JSON text, because Arrow has one type for all rows."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ExampleError(f"{name}: needs a JSON text, got {value!r} ({error})") from error
