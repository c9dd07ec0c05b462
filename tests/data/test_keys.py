"""Keys are addresses of 64 bits, and a key that is null is no key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.plain import picture

from mmbdhs.data import ChatPrompt, as_chat, content_key
from mmbdhs.data.keys import is_null, key_address
from mmbdhs.errors import ExampleError


def test_keys_are_64_bit_addresses() -> None:
    assert [key_address(k) for k in (0, 2**63 - 1, 2**63, 2**64 - 1, -1)] == [0, 2**63 - 1, -(2**63), -1, -1]
    assert key_address("a") == key_address("a") != key_address("b")
    assert key_address(np.int64(7)) == key_address(7) and key_address(np.uint64(2**64 - 1)) == -1


def test_keys_of_other_kinds_are_named() -> None:
    for key in (True, 1.5, b"a", (1,), 2**64):
        with pytest.raises(ExampleError, match="keys: needs integers"):
            key_address(key)


@pytest.mark.parametrize("key", [None, float("nan"), np.float64("nan"), [None, float("nan")]])
def test_null_keys_are_no_keys(key: Any) -> None:
    assert is_null(key)


@pytest.mark.parametrize("key", [0, "", "nan", [0, None]])
def test_these_are_keys(key: Any) -> None:
    assert not is_null(key)


def test_content_keys_tell_examples_apart_and_not_their_storage() -> None:
    """Keys that Arrow fills with null are no content; tools and template variables are."""
    parts: list[Any] = [{"type": "image"}, {"type": "text", "text": "What?"}]
    filled: list[Any] = [part | {"video": None} for part in parts]
    plain, stored = ([{"role": "user", "content": content}] for content in (parts, filled))
    chats = [as_chat(prompt, 1) for prompt in ("What?", plain, stored, ChatPrompt("What?", []))]
    assert len({content_key(chat, "A dog.", [picture(0)]) for chat in chats}) == 1
    others = [ChatPrompt("What?", [{"name": "zoom"}]), ChatPrompt("What?", None, {"enable_thinking": False}), "Who?"]
    keys = {content_key(as_chat(chat, 1), "A dog.", [picture(0)]) for chat in (*others, "What?")}
    keys |= {content_key(chats[0], *content) for content in (("A cat.", [picture(0)]), ("A dog.", [picture(1)]))}
    assert len(keys) == 6
