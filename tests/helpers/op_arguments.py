"""Good arguments of every op, and its two backends."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from helpers.ragged import arange32, flat, int32, random_keys

from mmbdhs.native import SpliceDraws, Splices, ops


def arguments() -> dict[str, dict]:
    """Good arguments of every op."""
    text, offsets = flat(["Yes, a cat. It sits. ", "No"])
    table, sentence_offsets = ops.split_sentences(text, offsets)
    completions, completion_offsets = flat(["a", "", "bc"])
    address = {"seed": 2**64 - 1, "keys": random_keys(3), "iteration": 5}
    return {
        "sample_visible": {**address, "tokens": int32(5, 0, 129), "threshold": 0.5},
        "random_uniform": {**address, "purpose": ops.NOISE, "sentences": arange32(3), "count": 5},
        "split_sentences": {"text": text, "offsets": offsets},
        "sentence_ends": {
            "text": text,
            "offsets": offsets,
            "final": torch.tensor([False, True]),
        },
        "draw_splices": {
            **address,
            "sentences": arange32(3),
            "swappable": torch.tensor([True, False, True]),
            "choices": int32(4, 5, 6),
            "swapped_choices": int32(3, 4, 5),
        },
        "join_splices": {
            "text": text,
            "offsets": offsets,
            "table": table,
            "sentence_offsets": sentence_offsets,
            "swapped": torch.tensor([True, False, True]),
            "kept_bytes": torch.tensor([9, 3, 3]),
            "completions": completions,
            "completion_offsets": completion_offsets,
        },
    }


# Ops that hand their arguments to the backends as a named tuple.
OPERANDS = {"draw_splices": SpliceDraws, "join_splices": Splices}


def call_backend(name: str, module: ModuleType, given: dict[str, Any] | None = None) -> Any:
    """Call the function of a backend with these arguments of the op, or good ones."""
    function, good = getattr(module, name), arguments()[name] if given is None else given
    return function(OPERANDS[name](**good)) if name in OPERANDS else function(**good)


def assert_same(got: Any, expected: Any) -> None:
    for value, truth in zip(
        torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert value.dtype == truth.dtype and torch.equal(value, truth)
