"""What a choice between paths of attention needs: the shape of a call, the override, the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from mmbdhs.vlm.attention_interface import LayerCall
from mmbdhs.vlm.mask_rules import MaskRule

_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.01, 3, 20  # rounds stop at the time limit, but between these bounds


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's attention, and what else its speed depends on."""

    query_heads: int
    kv_heads: int
    key_size: int
    value_size: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    threads: int
    causal: bool

    @classmethod
    def of(cls, call: LayerCall, rule: MaskRule) -> LayerShape:
        query, key, value = call.query, call.key, call.value
        return cls(
            query.shape[1],
            key.shape[1],
            key.shape[-1],
            value.shape[-1],
            (query.dtype, key.dtype, value.dtype),
            query.device,
            torch.get_num_threads(),
            rule.causal,
        )

    def __str__(self) -> str:
        heads = f"{self.query_heads}/{self.kv_heads} heads of size {self.key_size}"
        dtypes = "/".join(dict.fromkeys(map(str, self.dtypes)))
        rule = "causal" if self.causal else "windowed"
        return f"{rule}, {heads}, {dtypes}, {self.device}, {self.threads} thread(s)"


def path_override(variable: str, paths: Iterable[str]) -> str | None:
    """The path that an environment variable asks for; None where it is not set. Raises ValueError for an unknown path.

    variable: name of the environment variable.
    paths: names of the paths.
    """
    wanted = os.environ.get(variable)
    if wanted and wanted not in paths:
        raise ValueError(f"{variable} must be {' or '.join(map(repr, paths))}, got {wanted!r}")
    return wanted or None


def least_seconds(paths: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The least seconds of each path's calls. The paths take turns, so that noise affects all of them."""
    for path in paths.values():  # warm up
        _seconds(path, device)
    rounds: list[list[float]] = []
    while len(rounds) < _LEAST_ROUNDS or (len(rounds) < _MOST_ROUNDS and sum(map(sum, rounds)) < _SECONDS):
        rounds.append([_seconds(path, device) for path in paths.values()])
    return {name: min(times) for name, times in zip(paths, zip(*rounds, strict=True), strict=True)}


def fastest_path(seconds: Mapping[str, float]) -> tuple[str, str]:
    """The name of the fastest path, and the times of all as text."""
    times = ", ".join(f"{name} {1e3 * spent:.3f} ms" for name, spent in seconds.items())
    return min(seconds, key=seconds.__getitem__), times


def _seconds(path: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    path()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
