"""Checks of plain values: what passes, and the message for what does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from mmbdhs import checks


def test_right_values_pass() -> None:
    checks.number_in("x", 0.5, 0, math.inf)
    checks.integer("x", 2**40, 1)
    checks.integer("x", 3, 0, 3)
    checks.one_of("x", True, (True, False))


@pytest.mark.parametrize(
    ("check", "arguments", "error", "message"),
    [
        (checks.number_in, (1.5, 0, 1), ValueError, "x: needs a number in [0, 1], got 1.5"),
        (checks.number_in, (math.nan, 0, 1), ValueError, "x: needs a number in [0, 1], got nan"),
        (checks.number_in, (True, 0, 1), ValueError, "x: needs a number in [0, 1], got True"),
        (checks.number_in, ("1", 0, 1), ValueError, "x: needs a number in [0, 1], got '1'"),
        (checks.integer, (True, 0, 5), ValueError, "x: needs an integer in [0, 5], got True"),
        (checks.integer, (1.0, 0, 5), ValueError, "x: needs an integer in [0, 5], got 1.0"),
        (checks.integer, (6, 0, 5), ValueError, "x: needs an integer in [0, 5], got 6"),
        (checks.integer, (0, 1), ValueError, "x: needs an integer of at least 1, got 0"),
        (checks.one_of, ("c", ("a", "b")), ValueError, "x: needs one of 'a', 'b', got 'c'"),
        (checks.one_of, (1, (True, False)), ValueError, "x: needs one of True, False, got 1"),
    ],
)
def test_wrong_values_are_named(check: Callable, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        check("x", *arguments)
    assert str(raised.value) == message
