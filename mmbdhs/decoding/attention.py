"""The decoder's attention during decoding: each layer's query reads the branch cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmbdhs.decoding.attention_paths import DecodeBatch, Path, native_path
from mmbdhs.decoding.autotune import choose_path
from mmbdhs.decoding.kv_cache import BranchCacheLayer, BranchKVCache
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm import VLM, LayerCall, MaskRule, attention_through, not_every_layer, rule_of


class DecodeAttention:
    """Attention over `cache` for the layers of a model's decoder."""

    def __init__(self, vlm: VLM, cache: BranchKVCache) -> None:
        self._configs, self._cache = vlm.mask_configs, cache
        self._paths: dict[BranchCacheLayer, Path] = {}
        self._updated: list[tuple[BranchCacheLayer, Tensor, Tensor]] = []  # layers with their newest keys and values
        self._batches: dict[tuple[MaskRule, torch.device], DecodeBatch] = {}

    @property
    def is_native(self) -> bool:
        """Whether every layer that has attended so far did so by the native op."""
        return all(path is native_path for path in self._paths.values())

    @contextmanager
    def over(self, batch: DecodeBatch) -> Iterator[None]:
        """For the length of the context, one decoder call, the layers' queries [n, Hq, 1, D] see what `batch` says.

        Raises UnsupportedModelError if a layer attends to something else.
        """
        self._batches, self._updated = {(batch.rule, batch.suffix_positions.device): batch}, []
        with attention_through(self, self._configs):
            yield
        if len(self._updated) != len(self._cache.layers):
            raise not_every_layer(len(self._updated), len(self._cache.layers))

    def attend(self, call: LayerCall) -> Tensor:
        layer, rule = self._layer(call.key, call.value), rule_of(call.mask)
        if layer not in self._paths:  # one path for the life of the cache: a path relies on what it wrote before
            self._paths[layer] = choose_path(call, rule)
        return self._paths[layer](layer, call, self._batch_for(rule, call.query.device))[:, None]

    def _layer(self, key: Tensor, value: Tensor) -> BranchCacheLayer:
        """The layer whose update these are: the last one, or an earlier one that shares its keys and values."""
        if self._cache.pending is not None:
            self._updated.append(self._cache.pending)
            self._cache.pending = None
        for layer, *newest in reversed(self._updated):
            if key is newest[0] and value is newest[1]:
                return layer
        raise UnsupportedModelError(
            "model: needs layers that attend to the keys and values that were handed to the cache, as they are"
        )

    def _batch_for(self, rule: MaskRule, device: torch.device) -> DecodeBatch:
        if (rule, device) not in self._batches:
            self._batches[rule, device] = next(iter(self._batches.values())).under(rule, device)
        return self._batches[rule, device]
