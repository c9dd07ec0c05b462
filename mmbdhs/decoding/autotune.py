"""Which path runs the attention of decoding, announced once: on a GPU measured on the model's own shape, on a CPU the
op wherever it takes the shape, so that a run's rounding, and with it its samples, does not depend on the clock.

The environment variable MMBDHS_ATTENTION=native|sdpa overrides the measurement.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmbdhs.decoding.attention_paths import DecodeBatch, Path, native_path, sdpa_path
from mmbdhs.decoding.cuda_graphs import as_graph
from mmbdhs.decoding.kv_cache import BranchCacheLayer, Extents
from mmbdhs.native import backend, checks
from mmbdhs.vlm import LayerCall, LayerShape, MaskRule, fastest_path, least_seconds, path_override

_LOG = logging.getLogger("mmbdhs")
_VARIABLE = "MMBDHS_ATTENTION"
_PATHS: dict[str, Path] = {"native": native_path, "sdpa": sdpa_path}
_TIMED = ("cuda",)  # on CPUs the op was the faster path at every shape measured (docs/benchmarks.md)
_CALLS = 16  # in the CUDA graph that is timed, so that what is timed is the kernels


class _Load(NamedTuple):
    """The step that is timed: prompts, branches of each, and tokens of a prompt and of a branch."""

    prompts: int
    branches: int
    prefix: int
    suffix: int


# On a CPU it takes milliseconds even at 7B, and is small in SDPA's favour, whose cost grows with other branches. A GPU
# takes the step of a full pool in less than a millisecond.
_LOADS = {"cpu": _Load(2, 4, 64, 16), "cuda": _Load(13, 5, 160, 32)}

_Step = tuple[BranchCacheLayer, LayerCall, DecodeBatch]


def override() -> str | None:
    """The path that MMBDHS_ATTENTION asks for; None where it is not set. Raises ValueError for an unknown path."""
    return path_override(_VARIABLE, _PATHS)


def choose_path(call: LayerCall, rule: MaskRule) -> Path:
    """The path that the override asks for, or else the faster one for the shape of a layer's call under `rule`.

    Raises ValueError if the override asks for the native path and the op does not take this shape.
    """
    shape = LayerShape.of(call, rule)
    return _PATHS[_chosen(shape, override())]


@functools.cache
def _chosen(shape: LayerShape, wanted: str | None) -> str:
    name, reason = _decide(shape, wanted)
    _LOG.info("decoding attention runs on the %s path (%s): %s", name, shape, reason)
    return name


def _decide(shape: LayerShape, wanted: str | None) -> tuple[str, str]:
    if not shape.causal:
        return "sdpa", "the only path for layers that do not see all that came before"
    obstacle = _obstacle(shape)
    if wanted == "native" and obstacle:
        raise ValueError(f"{_VARIABLE} must be 'sdpa' for this model, got 'native': {obstacle}")
    if wanted:
        return wanted, f"{_VARIABLE}={wanted}"
    if obstacle or backend.live().name == "reference":
        return "sdpa", obstacle or "no compiled op is live"
    if shape.device.type not in _TIMED:
        return "native", "the op takes this shape"
    try:
        seconds = _measure(shape)
    except RuntimeError as error:
        return "sdpa", f"the op fails for this shape ({error})"
    return fastest_path(seconds)


def _obstacle(shape: LayerShape) -> str:
    """The reason why the op cannot take this shape; empty if it can."""
    if obstacle := backend.kernel_obstacle(shape.device):
        return obstacle
    if shape.key_size != shape.value_size or len(set(shape.dtypes)) > 1:
        return "the op needs queries, keys and values of one head size and dtype"
    try:
        checks.heads("q", q := torch.empty(1, 1, shape.key_size, dtype=shape.dtypes[0]), 3, like=q)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@torch.no_grad()
def _measure(shape: LayerShape) -> dict[str, float]:
    """The least seconds of each path's calls on random tensors."""
    step = _random_step(shape)
    return least_seconds({name: _timed_run(path, shape, step) for name, path in _PATHS.items()}, shape.device)


def _timed_run(path: Path, shape: LayerShape, step: _Step) -> Callable[[], object]:
    """What is timed: a call, or on a GPU the replay of several, as captured steps replay them."""
    if shape.device.type != "cuda":
        return partial(path, *step)

    def calls() -> Tensor:
        return torch.stack([path(*step) for _ in range(_CALLS)])

    return as_graph(calls, shape.device).replay


def _random_step(shape: LayerShape) -> _Step:
    chance = torch.Generator(shape.device).manual_seed(0)  # leaves the caller's generator alone

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=chance, dtype=shape.dtypes[0], device=shape.device)

    load = _LOADS[shape.device.type]
    slots = torch.arange(load.prompts * load.branches, device=shape.device)
    query = draw(len(slots), shape.query_heads, 1, shape.key_size)
    key, value = (draw(len(slots), shape.kv_heads, 1, shape.key_size) for _ in range(2))
    layer = BranchCacheLayer(key, value)
    extents = Extents(len(slots), load.suffix, load.prompts * load.prefix)
    for store in layer.stores:
        store.resize(extents)
        store.sequence.normal_(generator=chance)
    batch = DecodeBatch(
        suffix_positions=torch.full_like(slots, load.suffix - 1),
        prefix_count=torch.full_like(slots, load.prefix, dtype=torch.int32),
        prompt_index=(slots // load.branches).int(),
        prefix_offsets=torch.arange(0, extents.prefix + 1, load.prefix, dtype=torch.int32, device=shape.device),
        extents=extents,
        first_index=slots,
        prefix_index=torch.arange(extents.prefix, device=shape.device),
    )
    return layer, LayerCall(nn.Identity(), query, key, value, None, 1.0, 0.0), batch
