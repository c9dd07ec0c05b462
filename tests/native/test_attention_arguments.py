"""Wrong arguments of the attention ops raise an error that names them, before any pointer is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import attention_truth as truth
from helpers.ragged import int32
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbdhs.native import attention


def prefix_arguments() -> dict[str, Any]:
    return truth.random_shared_prefix(3, (4, 2), 32, 9, 5, examples=2, gather=True)


def masked_arguments() -> dict[str, Any]:
    q, k = torch.randn(2, 4, 3, 32), torch.randn(2, 2, 5, 32)
    return {"q": q, "k": k, "v": k.clone(), "visible": torch.ones(2, 5, dtype=torch.bool)}


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, two apart in the last dimension."""
    return torch.stack([tensor, tensor], -1)[..., 0]


GOOD = prefix_arguments()
WRONG_PREFIX = [
    ("q", GOOD["q"].double(), TypeError, "q: needs dtype float32, bfloat16 or float16, got torch.float64"),
    ("q", GOOD["q"].int(), TypeError, "q: needs dtype"),
    ("q", GOOD["q"][0], ValueError, r"q: needs 3 dimensions, got shape \(4, 32\)"),
    ("q", GOOD["q"][:, :3], ValueError, r"q: needs a multiple of the 2 head\(s\) of k_prefix, got 3"),
    ("q", GOOD["q"][..., :24], ValueError, "q: needs a head size of 32 … 256 in steps of 8, got 24"),
    ("q", GOOD["q"].repeat(1, 1, 2)[..., :36], ValueError, "q: needs a head size of .*, got 36"),
    ("q", torch.randn(3, 4, 264), ValueError, "q: needs a head size of .*, got 264"),
    ("q", spread(GOOD["q"]), ValueError, "q: needs a contiguous last dimension, got strides"),
    ("q", GOOD["q"].to("meta"), ValueError, ": needs the device of q, meta, got cpu"),
    ("k_prefix", GOOD["k_prefix"].bfloat16(), TypeError, "k_prefix: needs the dtype of q, torch.float32, got"),
    ("k_prefix", GOOD["k_prefix"][:0], ValueError, r"multiple of the 0 head\(s\) of k_prefix"),
    ("k_prefix", spread(GOOD["k_prefix"]), ValueError, "k_prefix: needs a contiguous last dimension"),
    ("v_prefix", GOOD["v_prefix"][:, :8], ValueError, r"v_prefix: needs shape \[2, 9, 32\], got \[2, 8, 32\]"),
    ("v_prefix", GOOD["v_prefix"].to("meta"), ValueError, "v_prefix: needs the device of q, cpu, got meta"),
    ("k_suffix", GOOD["k_suffix"][:2], ValueError, r"k_suffix: needs shape \[3, 2, 'any', 32\], got"),
    ("v_suffix", GOOD["v_suffix"][:, :, :4], ValueError, r"v_suffix: needs shape \[3, 2, 5, 32\], got"),
    ("v_suffix", GOOD["v_suffix"][0], ValueError, "v_suffix: needs 4 dimensions"),
    ("prefix_count", GOOD["prefix_count"].long(), TypeError, "prefix_count: needs dtype torch.int32"),
    ("prefix_count", GOOD["prefix_count"][:2], ValueError, r"prefix_count: needs 3 row\(s\), got 2"),
    ("prefix_count", int32(0, -1, 0), ValueError, "prefix_count: needs numbers in 0 … .*, got -1 at row 1"),
    ("prefix_count", int32(0, 0, 7), ValueError, "prefix_count: needs numbers in 0 … .*, got 7 at row 2"),
    ("suffix_length", int32(0, 6, 0), ValueError, "suffix_length: needs numbers in 0 … 5, got 6 at row 1"),
    (
        "suffix_length",
        int32(-(2**31), 0, 0),
        ValueError,
        "needs numbers in 0 … 5, got -2147483648 at row 0",
    ),
    ("visible", int32(0, 1, 9, 2, 3, 4), ValueError, "visible: needs numbers in 0 … 8, got 9 at row 2"),
    ("visible", int32(0, 1, -1, 2, 3, 4), ValueError, "visible: needs numbers in 0 … 8, got -1 at row 2"),
    ("visible", torch.ones(9, dtype=torch.bool), TypeError, "visible: needs dtype torch.int32"),
    ("example", int32(0, 1, 2), ValueError, "example: needs numbers in 0 … 1, got 2 at row 2"),
    ("example", None, ValueError, "example and prefix_offsets: need to be given together"),
    ("prefix_offsets", None, ValueError, "example and prefix_offsets: need to be given together"),
    ("prefix_offsets", int32(), ValueError, "prefix_offsets: needs at least 1 entry, got 0"),
    ("prefix_offsets", int32(0, 4, 3), ValueError, "prefix_offsets: needs entries that do not fall, got a step of -1"),
    ("prefix_offsets", int32(0, 3, 7), ValueError, "prefix_offsets: needs numbers in 0 … 6, got 7 at row 2"),
    ("scale", float("nan"), ValueError, "scale: needs a number of at most .* in size, got nan"),
    ("scale", 1e30, ValueError, "scale: needs a number of at most .* in size, got"),
    ("softcap", -1.0, ValueError, "softcap: needs a finite number of at least 0, got -1.0"),
]
MASKED = masked_arguments()
WRONG_MASKED = [
    ("q", MASKED["q"].half(), TypeError, "k: needs the dtype of q, torch.float16, got torch.float32"),
    ("q", MASKED["q"][:1], ValueError, r"k: needs shape \[1, 'any', 'any', 32\], got \[2, 2, 5, 32\]"),
    ("q", MASKED["q"].repeat(1, 1, 2, 1), ValueError, "q: needs at most as many rows as k if causal, got 6 over 5"),
    ("k", MASKED["k"][..., :24], ValueError, "k: needs a head size"),
    ("v", spread(MASKED["v"]), ValueError, "v: needs a contiguous last dimension"),
    ("visible", MASKED["visible"][:, :4], ValueError, r"visible: needs shape \[2, 5\], got \[2, 4\]"),
    ("visible", MASKED["visible"].int(), TypeError, "visible: needs dtype torch.bool, got torch.int32"),
    ("visible", MASKED["visible"].to("meta"), ValueError, "visible: needs the device of q, cpu, got meta"),
    ("softcap", float("inf"), ValueError, "softcap: needs a finite number of at least 0, got inf"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG_PREFIX)
def test_shared_prefix(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention.shared_prefix_attention(**{**prefix_arguments(), name: value})


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG_MASKED)
def test_masked(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention.masked_attention(**{**masked_arguments(), "causal": True, name: value})


DTYPES = st.sampled_from(tuple(truth.TOLERANCES))


@st.composite
def prefix_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Good arguments of any shape, up to two of them then spoilt."""
    kv_heads = draw(st.integers(1, 3))
    arguments = truth.random_shared_prefix(
        draw(st.integers(0, 6)),
        (kv_heads * draw(st.integers(1, 4)), kv_heads),
        8 * draw(st.integers(4, 12)),
        draw(st.integers(0, 140)),
        draw(st.integers(0, 70)),
        draw(DTYPES),
        examples=draw(st.integers(0, 3)),
        gather=draw(st.booleans()),
        step_major=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    for name in draw(st.lists(st.sampled_from(tuple(arguments)), max_size=2)):
        arguments[name] = spoil(draw, arguments[name])
    return arguments


@st.composite
def masked_cases(draw: st.DrawFn) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    dtype, kv_heads, head_dim = draw(DTYPES), draw(st.integers(1, 2)), 8 * draw(st.integers(4, 12))
    queries, keys, batch = draw(st.integers(0, 40)), draw(st.integers(0, 140)), draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 3))
    q = torch.randn(batch, queries, heads, head_dim, generator=chance).to(dtype).transpose(1, 2)
    k, v = (torch.randn(batch, kv_heads, keys, head_dim, generator=chance).to(dtype) for _ in range(2))
    visible = torch.rand(batch, keys, generator=chance) > 0.5
    arguments = {"q": q, "k": k, "v": v, "visible": visible, "causal": draw(st.booleans())}
    for name in draw(st.lists(st.sampled_from(("q", "k", "v", "visible")), max_size=2)):
        arguments[name] = spoil(draw, arguments[name])
    return arguments


def spoil(draw: st.DrawFn, value: torch.Tensor | None) -> torch.Tensor | None:
    """The argument with another number, length, dtype, rank, stride or device; sometimes it stays valid."""
    if value is None:
        return torch.arange(draw(st.integers(0, 4)), dtype=torch.int32)
    if value.dtype == torch.int32 and len(value) and draw(st.booleans()):
        value = value.clone()
        value[draw(st.integers(0, len(value) - 1))] = draw(st.sampled_from([-(2**31), -1, 1, 7, 200, 2**31 - 1]))
        return value
    ways = {
        "shorter": lambda: value[: draw(st.integers(0, 2))],
        "narrower": lambda: value[..., : draw(st.integers(0, 40))],
        "dtype": lambda: value.to(draw(st.sampled_from([torch.float64, torch.int64, torch.float32, torch.int32]))),
        "rank": lambda: value[None],
        "stride": lambda: spread(value),
        "flipped": lambda: value.mT if value.dim() > 1 else value.flip(0),
        "device": lambda: value.to("meta"),
        "absent": lambda: None,
    }
    return ways[draw(st.sampled_from(tuple(ways)))]()


def check(op: Callable[..., Any], definition: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """The op gives the right numbers, or an error of the checks, which begins with the name of an argument.

    Any other exception fails the test: the dispatcher itself lets all of these tensors through, and None too.
    """
    try:
        got = op(**arguments)
    except (TypeError, ValueError) as error:
        named = re.match(r"(\w+)(?: and \w+)?: needs? ", str(error))
        assert named and named[1] in arguments, error
        return
    if got[0].device.type == "cpu" and got[0].numel():
        truth.assert_close(got, definition(arguments))


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(prefix_cases())
def test_fuzzed_shared_prefix(arguments: dict[str, Any]) -> None:
    check(attention.shared_prefix_attention, truth.shared_prefix, arguments)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(masked_cases())
def test_fuzzed_masked(arguments: dict[str, Any]) -> None:
    check(attention.masked_attention, lambda given: truth.masked(**given), arguments)
