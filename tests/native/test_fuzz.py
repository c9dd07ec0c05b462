"""Ops under integers from the ends of their ranges: the right numbers, or an error that names an argument.

MMBDHS_FUZZ_CALLS sets how many calls are made, MMBDHS_FUZZ_SEED which.
"""

from __future__ import annotations

import os
import random
import re
from typing import Any

import torch
from helpers.op_arguments import arguments, assert_same, call_backend
from torch import Tensor

from mmbdhs.native import ops, reference

CALLS, SEED = (int(os.environ.get(f"MMBDHS_FUZZ_{name}", default)) for name, default in (("CALLS", 3000), ("SEED", 0)))
POWERS = [2**bits for bits in (0, 3, 8, 15, 16, 31, 32, 62, 63)]
EXTREMES = sorted({sign * (power + more) for power in POWERS for more in (-1, 0, 1) for sign in (-1, 1)})
AMOUNTS = {"tokens", "count"}  # of numbers that are drawn, so large ones only take long
LARGEST_AMOUNT = 2**16


def spoilt(chance: random.Random, name: str, value: Any) -> Any:
    """The argument with up to three of its integers replaced by extreme ones."""
    if isinstance(value, int) and not isinstance(value, bool):
        return chance.choice(allowed(name, torch.int64)) if chance.random() < 0.1 else value
    if not isinstance(value, Tensor) or value.dtype == torch.bool or not len(value):
        return value
    flat = value.clone().flatten()
    for _ in range(chance.choice((0, 0, 1, 2, 3))):
        flat[chance.randrange(len(flat))] = chance.choice(allowed(name, value.dtype))
    return flat.reshape(value.shape)


def allowed(name: str, dtype: torch.dtype) -> list[int]:
    limits = torch.iinfo(dtype)
    highest = min(limits.max, LARGEST_AMOUNT) if name in AMOUNTS else limits.max
    return [number for number in EXTREMES if limits.min <= number <= highest]


def test_extreme_integers() -> None:
    chance, good, refused = random.Random(SEED), arguments(), 0
    for number in range(CALLS):
        name = chance.choice(tuple(good))
        given = {key: spoilt(chance, key, value) for key, value in good[name].items()}
        try:
            found = getattr(ops, name)(**given)
        except (TypeError, ValueError) as error:
            assert re.match(r"(\w+)(, \w+)*( and \w+)?: needs? ", str(error)), (number, name, error)
            refused += 1
        else:
            assert_same(found, call_backend(name, reference, given))
    assert 0.2 * CALLS < refused < 0.9 * CALLS
