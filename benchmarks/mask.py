"""Eq. 6, which image tokens stay visible: addressed draws of `sample_visible` against NumPy's and torch's own streams.

All give the same ragged result: rising indices within each example, and where each example begins. The others draw one
number a token from a stateful generator, unseeded; ours draws it at the token's address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import median_of, thread_counts
from table import Options, Table

from mmbdhs.native import ops

TOKENS = 2880
COLUMNS = {
    **{"examples": ">4", "rho": ">4", "threads": ">1"},
    **{name: ">6.3f" for name in ("ours", "numpy", "torch_rand")},
    **{"ours_over_numpy": ">5.2f", "ours_over_torch": ">5.2f"},
}


def main(options: Options) -> None:
    print("\nns for a token; ours_over_…: less is better")
    with Table("mask", COLUMNS, options) as table:
        for threads in thread_counts(options.device)[: 1 if options.quick else None]:
            torch.set_num_threads(threads)
            for examples in (1, 64) if options.quick else (1, 64, 512):
                for rho in (0.99,) if options.quick else (0.5, 0.99):
                    table.add(**measure(options, examples, rho))


def measure(options: Options, examples: int, rho: float) -> dict[str, Any]:
    """One row."""
    total = examples * TOKENS
    sides = contestants(options.device, examples, rho)
    for name, side in sides.items():
        check(name, *(torch.as_tensor(x).cpu() for x in side()), examples, rho)
    calls = max(1, 200_000 // total)  # of one example: many calls, or the clock's own time would count
    seconds = median_of(3 if options.quick else 31, *(repeated(side, calls) for side in sides.values()))
    times = {name: 1e9 * value / calls / total for name, value in zip(sides, seconds, strict=True)}
    return {
        **{"examples": examples, "rho": rho, "image_tokens": TOKENS, **times},
        **{"ours_over_numpy": times["ours"] / times["numpy"], "ours_over_torch": times["ours"] / times["torch_rand"]},
    }


def contestants(device: torch.device, examples: int, rho: float) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Calls that give (indices int32, offsets int64 [E + 1])."""
    keys, counts = torch.arange(examples, device=device), torch.full((examples,), TOKENS, dtype=torch.int32)
    counts = counts.to(device)
    total, rng = examples * TOKENS, np.random.default_rng()
    bounds = np.arange(examples + 1) * TOKENS
    bounds_there = torch.from_numpy(bounds).to(device)

    def numpy_stream() -> tuple[np.ndarray, np.ndarray]:
        places = np.flatnonzero(rng.random(total, dtype=np.float32) >= rho)
        offsets = np.searchsorted(places, bounds)
        return (places - np.repeat(bounds[:-1], np.diff(offsets))).astype(np.int32), offsets

    def torch_stream() -> tuple[torch.Tensor, torch.Tensor]:
        places = (torch.rand(total, device=device) >= rho).nonzero().flatten()
        offsets = torch.searchsorted(places, bounds_there)
        return (places - bounds_there[:-1].repeat_interleave(offsets.diff())).int(), offsets

    return {
        "ours": lambda: ops.sample_visible(0, keys, 0, counts, rho),
        "numpy": numpy_stream,
        "torch_rand": torch_stream,
    }


def check(name: str, indices: torch.Tensor, offsets: torch.Tensor, examples: int, rho: float) -> None:
    """Rising indices within each example, and as many as the share says (6 standard deviations: 1 in 5·10⁸)."""
    assert len(offsets) == examples + 1 and offsets[-1] == len(indices), f"{name}: offsets do not fit the indices"
    for row in np.split(indices.numpy(), offsets[1:-1].numpy()):
        assert (np.diff(row) > 0).all() and (len(row) == 0 or 0 <= row[0] <= row[-1] < TOKENS), f"{name}: not rising"
    total = examples * TOKENS
    allowed = 6 * (total * rho * (1 - rho)) ** 0.5
    assert abs(len(indices) - total * (1 - rho)) <= allowed, f"{name}: {len(indices)} of {total} tokens are visible"


def repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(times):
            call()

    return calls
