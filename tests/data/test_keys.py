"""Keys are addresses of 64 bits."""

from __future__ import annotations

from mmbdhs.data.keys import key_address


def test_keys_are_64_bit_addresses() -> None:
    assert [key_address(k) for k in (0, 2**63 - 1, 2**63, 2**64 - 1, -1)] == [0, 2**63 - 1, -(2**63), -1, -1]
    assert key_address("a") == key_address("a") != key_address("b")
