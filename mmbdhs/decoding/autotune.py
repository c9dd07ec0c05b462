"""Which path runs the attention of decoding: measured on the model's own shape, announced once, overridden by
MMBDHS_ATTENTION."""

from __future__ import annotations

import functools
import logging
import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mmbdhs.decoding.attention_paths import Path, Rows, native_path, sdpa_path
from mmbdhs.decoding.kv_cache import SlotLayer
from mmbdhs.native import backend, checks
from mmbdhs.vlm import MaskRule

_LOG = logging.getLogger("mmbdhs")
_VARIABLE = "MMBDHS_ATTENTION"
_PATHS: dict[str, Path] = {"native": native_path, "sdpa": sdpa_path}
# What is timed: milliseconds of work even at 7B, and kind to SDPA, whose cost grows with other branches' keys.
_PROMPTS, _BRANCHES_PER_PROMPT, _PREFIX, _SUFFIX = 2, 4, 64, 16
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.01, 3, 20  # the time is a limit between the two


@dataclass(frozen=True)
class _Shape:
    """Of one layer's attention, and what else its speed depends on."""

    query_heads: int
    kv_heads: int
    key_size: int
    value_size: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    threads: int
    causal: bool

    def __str__(self) -> str:
        heads = f"{self.query_heads}/{self.kv_heads} heads of size {self.key_size}"
        dtypes = "/".join(dict.fromkeys(map(str, self.dtypes)))
        rule = "causal" if self.causal else "windowed"
        return f"{rule}, {heads}, {dtypes}, {self.device}, {self.threads} thread(s)"


def override() -> str | None:
    """The path that MMBDHS_ATTENTION asks for, None for none. Raises ValueError for an unknown one."""
    wanted = os.environ.get(_VARIABLE)
    if wanted and wanted not in _PATHS:
        raise ValueError(f"{_VARIABLE} must be 'native' or 'sdpa', got {wanted!r}")
    return wanted or None


def choose_path(query: Tensor, key: Tensor, value: Tensor, rule: MaskRule) -> Path:
    """The override, or the faster path for query [n, Hq, 1, D], new key [n, Hkv, 1, D] and value [n, Hkv, 1, Dv] of
    a layer under `rule`.

    Raises ValueError if the override asks for the native path and the op does not take this shape."""
    shape = _Shape(
        query.shape[1],
        key.shape[1],
        key.shape[-1],
        value.shape[-1],
        (query.dtype, key.dtype, value.dtype),
        query.device,
        torch.get_num_threads(),
        rule.causal,
    )
    return _PATHS[_chosen(shape, override())]


@functools.cache
def _chosen(shape: _Shape, wanted: str | None) -> str:
    name, reason = _decide(shape, wanted)
    _LOG.info("decoding attention runs on the %s path (%s): %s", name, shape, reason)
    return name


def _decide(shape: _Shape, wanted: str | None) -> tuple[str, str]:
    if not shape.causal:
        return "sdpa", "the only path for layers that see less than all that came before"
    obstacle = _obstacle(shape)
    if wanted == "native" and obstacle:
        raise ValueError(f"{_VARIABLE} must be 'sdpa' for this model, got 'native': {obstacle}")
    if wanted:
        return wanted, f"{_VARIABLE}={wanted}"
    if obstacle or backend.live().name == "reference":
        return "sdpa", obstacle or "no compiled op is live"
    seconds = _measure(shape)
    times = ", ".join(f"{name} {1e3 * spent:.3f} ms" for name, spent in seconds.items())
    return min(seconds, key=seconds.__getitem__), times


def _obstacle(shape: _Shape) -> str:
    """Why the op cannot take this shape; empty if it can."""
    if shape.device.type not in ("cpu", "cuda"):
        return f"the op has no kernels for {shape.device.type}"
    if shape.key_size != shape.value_size or len(set(shape.dtypes)) > 1:
        return "the op needs queries, keys and values of one head size and dtype"
    try:
        checks.heads("q", q := torch.empty(1, 1, shape.key_size, dtype=shape.dtypes[0]), 3, like=q)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@torch.no_grad()
def _measure(shape: _Shape) -> dict[str, float]:
    """The least seconds of each path's calls on random tensors; the paths take turns, so that noise hits them alike."""
    step = _random_step(shape)
    for path in _PATHS.values():  # warm up
        _seconds(path, shape, step)
    rounds: list[list[float]] = []
    while len(rounds) < _LEAST_ROUNDS or (len(rounds) < _MOST_ROUNDS and sum(map(sum, rounds)) < _SECONDS):
        rounds.append([_seconds(path, shape, step) for path in _PATHS.values()])
    return {name: min(times) for name, times in zip(_PATHS, zip(*rounds, strict=True), strict=True)}


def _seconds(path: Path, shape: _Shape, step: tuple[SlotLayer, Tensor, Tensor, Tensor, Rows]) -> float:
    begin = time.perf_counter()
    path(*step, 1.0, 0.0)
    if shape.device.type == "cuda":
        torch.cuda.synchronize(shape.device)
    return time.perf_counter() - begin


def _random_step(shape: _Shape) -> tuple[SlotLayer, Tensor, Tensor, Tensor, Rows]:
    chance = torch.Generator(shape.device).manual_seed(0)  # of its own: the caller's draws stay as they were

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=chance, dtype=shape.dtypes[0], device=shape.device)

    slots = torch.arange(_PROMPTS * _BRANCHES_PER_PROMPT, device=shape.device)
    query = draw(len(slots), shape.query_heads, 1, shape.key_size)
    key, value = (draw(len(slots), shape.kv_heads, 1, shape.key_size) for _ in range(2))
    layer = SlotLayer(key, value)
    extents = len(slots), _SUFFIX, _PROMPTS * _PREFIX
    for store in layer.stores:
        store.resize(*extents)
        store.row.normal_(generator=chance)
    rows = Rows(
        places=torch.full_like(slots, _SUFFIX - 1),
        prefix_count=torch.full_like(slots, _PREFIX, dtype=torch.int32),
        example=(slots // _BRANCHES_PER_PROMPT).int(),
        prefix_offsets=torch.arange(0, extents[2] + 1, _PREFIX, dtype=torch.int32, device=shape.device),
        extents=extents,
        first_index=slots,
        prefix_index=slots,
    )
    return layer, query, key, value, rows
