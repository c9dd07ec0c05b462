"""Keys of examples, and the addresses of their random draws."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from mmbdhs.data.messages import Messages
from mmbdhs.errors import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image


def content_key(messages: Messages, reference: str, images: list[Image]) -> str:
    """A key that depends on the example alone: 16 hexadecimal digits of a hash of prompt, reference and images."""
    digest = blake2b(repr((messages, reference)).encode("utf-8", "surrogatepass"), digest_size=8)
    for image in images:
        digest.update(repr(image.size).encode() + image.tobytes())
    return digest.hexdigest()


def key_address(key: int | str) -> int:
    """The 64 bits that address a key's random draws, as a signed integer: an integer is its own address, a string is
    hashed. Raises ExampleError for any other key and for integers of more than 64 bits."""
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise ExampleError(f"keys: needs integers or strings, got {type(key).__name__}")
    if isinstance(key, str):
        key = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    if not -(2**63) <= key < 2**64:
        raise ExampleError(f"keys: needs integers of at most 64 bits, got {key}")
    return key - 2**64 if key >= 2**63 else key
