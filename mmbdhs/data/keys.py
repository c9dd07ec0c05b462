"""Keys of examples, and the addresses of their random draws."""

from __future__ import annotations

from hashlib import blake2b
from numbers import Integral
from typing import TYPE_CHECKING, Any

from mmbdhs.data.messages import ChatPrompt
from mmbdhs.errors import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_null(key: Any) -> bool:
    """Whether a key is missing: None, the NaN that pandas writes for it, or a list of these alone."""
    if isinstance(key, (list, tuple)):
        return all(map(is_null, key))
    return key is None or (isinstance(key, float) and key != key)


def content_key(chat: ChatPrompt, reference: str, images: list[Image]) -> str:
    """A key that depends on the example alone: 16 hexadecimal digits of a hash of prompt, reference and images."""
    content = (chat.messages, reference, *([arguments] if (arguments := chat.template_arguments) else []))
    digest = blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=8)
    for image in images:
        digest.update(repr(image.size).encode() + image.tobytes())
    return digest.hexdigest()


def as_key(key: Any) -> int | str:
    """The key as an int or a string. Raises ExampleError for any other key."""
    if isinstance(key, bool) or not isinstance(key, (Integral, str)):
        raise ExampleError(f"keys: needs integers or strings, got {type(key).__name__}")
    return key if isinstance(key, str) else int(key)


def key_address(key: int | str) -> int:
    """The 64 bits that address a key's random draws, as a signed integer: an integer is its own address, a string is
    hashed. Raises ExampleError for any other key and for integers of more than 64 bits."""
    address = as_key(key)
    if isinstance(address, str):
        address = int.from_bytes(blake2b(address.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    if not -(2**63) <= address < 2**64:
        raise ExampleError(f"keys: needs integers of at most 64 bits, got {key}")
    return address - 2**64 if address >= 2**63 else address
