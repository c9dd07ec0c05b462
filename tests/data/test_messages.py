"""Prompts and responses in all their forms."""

from __future__ import annotations

from typing import Any

import pytest

from mmbdhs.data import ChatPrompt, as_chat, as_messages, as_response, message_text
from mmbdhs.errors import ExampleError

IMAGE: dict[str, Any] = {"type": "image"}
QUESTION: dict[str, Any] = {"type": "text", "text": "Where is it?"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_the_text_of_a_message_leaves_images_out() -> None:
    image = {"type": "image", "text": None}  # as `datasets` brings parts of a column back, with every key
    parts = [image, {"type": "text", "text": "Two "}, {"type": "text", "text": "cats."}]
    for content in ("Two cats.", parts):
        assert message_text({"role": "user", "content": content}) == "Two cats."


def test_a_string_is_a_user_turn_with_the_images_first() -> None:
    assert as_messages("Where is it?", 2) == [user(IMAGE, IMAGE, QUESTION)]


def test_keys_that_arrow_fills_are_dropped_at_all_depths() -> None:
    """Arrow gives each struct of a column the keys of all structs."""
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 1, "y": None}}}
    stored = [
        {"role": "user", "content": [IMAGE | {"text": None}, QUESTION | {"image": None}], "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "A car.", "tool_calls": None},
    ]
    tools = [{"type": "function", "function": {"name": "zoom", "strict": None, "parameters": {"x": {"enum": None}}}}]
    chat = as_chat(ChatPrompt(stored, tools, {"enable_thinking": False, "date": None}), 1)
    clean = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 1}}}
    assert chat.messages == [
        user(IMAGE, QUESTION),
        {"role": "assistant", "tool_calls": [clean]},
        {"role": "tool", "content": "A car."},
    ]
    assert chat.tools == [{"type": "function", "function": {"name": "zoom", "parameters": {"x": {}}}}]
    assert chat.template_arguments == {"enable_thinking": False, "tools": chat.tools}


def test_tools_and_template_variables_may_be_json_text_or_missing() -> None:
    record = {"prompt": "What?", "tools": '[{"name": "zoom"}]', "chat_template_kwargs": '{"enable_thinking": false}'}
    chat = as_chat(ChatPrompt.of_record(record), 1)
    assert chat.template_arguments == {"tools": [{"name": "zoom"}], "enable_thinking": False}
    for nothing in ({}, {"tools": None, "chat_template_kwargs": None}, {"tools": [], "chat_template_kwargs": {}}):
        assert as_chat(ChatPrompt.of_record({"prompt": "What?"} | nothing), 1).template_arguments == {}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "needs a string or a list of messages with a role, got NoneType"),
        (3, "needs a string or a list of messages with a role, got int"),
        (user(IMAGE), "needs a string or a list of messages with a role, got dict"),
        (["What?"], "needs a string or a list of messages with a role, got list"),
        ([], "needs messages that end before the assistant's turn, got none"),
        ([{"content": "What?"}], "needs messages with a role of system, developer, user, .*, got None"),
        ([{"from": "human", "value": "What?"}], "needs messages with a role of .*, got None"),
        ([{"role": "human", "content": "What?"}], "needs messages with a role of .*, got 'human'"),
        ([{"role": 3, "content": "What?"}], "needs messages with a role of .*, got 3"),
        (
            [user(IMAGE, QUESTION), assistant("A car.")],
            "needs messages that end before .*'assistant'",
        ),
        ([user(QUESTION)], r"needs as many image placeholders as images, got 0 for 1 image\(s\)"),
        ([user(IMAGE, IMAGE)], r"needs as many image placeholders as images, got 2 for 1 image\(s\)"),
        ([user("Where?")], "needs parts .*, got one of type 'str'"),
        ([user(None)], "needs parts .*, got one of type 'NoneType'"),
        ([user(IMAGE, {"text": "Where?"})], "needs parts .*, got one of type None"),
        ([user(IMAGE, {"type": "text"})], "needs parts .*, got one of type 'text'"),
        ([user(IMAGE, {"type": "text", "text": 3})], "needs parts .*, got one of type 'text'"),
        ([user(IMAGE, {"type": "text", "text": None})], "needs parts .*, got one of type 'text'"),
        ([user(IMAGE, {"type": "video", "url": "x.mp4"})], "needs parts .*, got one of type 'video'"),
        ([user(IMAGE, {"type": "audio", "path": "x.wav"})], "needs parts .*, got one of type 'audio'"),
        ([user({"type": "image_url", "image_url": {"url": "x"}})], "needs parts .*, got one of type 'image_url'"),
        ([{"role": "user", "content": None}], "needs content that is text or a list of parts, got NoneType"),
        ([{"role": "user", "content": {"type": "text"}}], "needs content that is text or a list of parts, got dict"),
        ([{"role": "user", "content": 7}], "needs content that is text or a list of parts, got int"),
    ],
)
def test_prompts_that_are_no_conversation_are_named(prompt: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=f"^prompts: {message}"):
        as_chat(prompt, 1)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tools", "zoom", "tools: needs a JSON text, got 'zoom'"),
        ("tools", {"name": "zoom"}, "tools: needs a list of JSON schemas, got dict"),
        ("chat_template_kwargs", "[", "chat_template_kwargs: needs a JSON text"),
        ("chat_template_kwargs", ["x"], "chat_template_kwargs: needs an object, got list"),
    ],
)
def test_template_columns_of_another_kind_are_named(column: str, value: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        as_chat(ChatPrompt.of_record({"prompt": "What?", column: value}), 1)


def test_one_assistant_turn_of_text_is_its_text() -> None:
    parts = [{"type": "text", "text": "A red ", "image": None}, {"type": "text", "text": "car."}]
    for response in ("A red car.", [assistant("A red car.")], [assistant(parts, tool_calls=None)]):
        assert as_response(response, "chosen") == "A red car."


def test_what_text_cannot_say_stays_messages() -> None:
    turns = [assistant("A car."), user(QUESTION), assistant("On the left.")]
    assert as_response(turns, "chosen") == turns
    thought = [assistant("A car.", reasoning_content="It has wheels.")]
    assert as_response(thought, "chosen") == thought


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (None, "needs a string or a list of messages"),
        (3, "needs a string or a list of messages"),
        ("", "needs text, got ''"),
        (" \n", "needs text"),
        ([], "needs messages that begin and end with the assistant's, got none"),
        ([user(QUESTION)], r"needs messages that begin and end with the assistant's, got \['user'\]"),
        ([assistant("A car."), user(QUESTION)], "needs messages that begin and end with the assistant's"),
        ([user(QUESTION), assistant("A car.")], "needs messages that begin and end with the assistant's"),
        ([assistant("")], "needs text"),
        ([assistant("A car."), user(QUESTION), assistant(" ")], "needs text"),
        ([assistant([IMAGE])], "needs a response of text, got an image part in it"),
        ([assistant([{"type": "video"}])], "needs parts .*, got one of type 'video'"),
        ([assistant(["A car."])], "needs parts .*, got one of type 'str'"),
    ],
)
def test_responses_that_are_none_are_named(response: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=f"^rejected: {message}"):
        as_response(response, "rejected")
