"""Keys and values of branches that decode together: each prompt's once, and each branch's own.

One layer stores its keys (and likewise its values) as one sequence of all suffixes and then all prefixes:

    | slot 0: T keys | slot 1: T keys | … | prompt 0 | prompt 1 | … |
    |<-------------- suffix ---------->   |<------- prefix -------->|

Attention reads either part through a view, or the whole sequence under a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SUFFIX = 16  # the least room for a suffix: most sentences end within it


class Extents(NamedTuple):
    """Sizes of a store: its slots, the keys T that each slot has room for, and the keys of all prompts together."""

    slots: int
    suffix: int
    prefix: int


def bucket(count: int) -> int:
    """The least 2^n or 3 · 2^n that is at least `count`: few values, each at most half above the one before."""
    power = 1 << (count - 1).bit_length() if count else 0
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power


def on_device(numbers: list[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """The numbers on the device. The host does not wait for a GPU."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def grow(store: Tensor, *shape: int) -> Tensor:
    """`store` as the leading corner of zeros of `shape`, or `store` itself if it has that shape."""
    if store.shape == shape:
        return store
    larger = store.new_zeros(shape)
    larger[tuple(map(slice, store.shape))] = store
    return larger


class KeyStore:
    """Keys or values of one layer, with zeros where nothing was written.

    sequence: [Hkv, slots · T + P, D].
    suffix: its view [slots, Hkv, T, D].
    prefix: its view [Hkv, P, D].
    """

    def __init__(self, like: Tensor) -> None:
        """like: [n, Hkv, L, D], for heads, head size, dtype and device."""
        self.sequence = like.new_zeros(like.shape[1], 0, like.shape[3])
        self._set_views(0, 0)

    def resize(self, extents: Extents) -> None:
        """Grow to `extents`, none of which is less than before."""
        slots, suffix, prefix = extents
        before = self.suffix, self.prefix
        self.sequence = self.sequence.new_zeros(self.sequence.shape[0], slots * suffix + prefix, self.sequence.shape[2])
        self._set_views(slots, suffix)
        for view, old in zip((self.suffix, self.prefix), before, strict=True):
            view[tuple(map(slice, old.shape))] = old

    def _set_views(self, slots: int, suffix: int) -> None:
        self.suffix = self.sequence[:, : slots * suffix].unflatten(1, (slots, suffix)).transpose(0, 1)
        self.prefix = self.sequence[:, slots * suffix :]


class BranchCacheLayer(DynamicLayer):
    """The keys and values of one layer."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """keys [n, Hkv, L, D], values [n, Hkv, L, Dv], for heads, head sizes, dtype and device."""
        super().__init__()
        self.stores = self.key_store, self.value_store = KeyStore(keys), KeyStore(values)
        self.is_initialized = True

    def write(self, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store one new key and value of each slot.

        slots: int64 [n].
        positions: int64 [n], the key's position in the suffix of its slot.
        keys, values: [n, Hkv, 1, D].
        """
        self.key_store.suffix[slots, :, positions] = keys[:, :, 0]
        self.value_store.suffix[slots, :, positions] = values[:, :, 0]


class BranchKVCache(Cache):
    """The cache of decoding. `update` stores nothing: it notes which layer's keys come next, and the attention call
    that follows writes them (see `decoding.attention`).

    extents: the sizes of every store.
    offsets: the prefix of prompt i is at offsets[i] … offsets[i + 1] of the prefix stores.
    prefix_offsets: the same on the device, int32 [≥ prompts + 1], padded with its last entry.
    prefix_index: int64 [prefix], the indices that the prefixes' tokens have in their whole sequences.
    plan: (bytes of one token in all stores) -> what to reserve with the first prompt; None to grow as needed.
    seen_tokens: the answer to a model that asks how many tokens came before. One number cannot be true of all
        branches; `check_decoding` makes sure that it does not matter.
    """

    layers: list[BranchCacheLayer]  # type: ignore[assignment]  # a narrower type of layer

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self.extents = Extents(0, 0, 0)
        self.offsets = [0]
        self.prefix_offsets = torch.zeros(2, dtype=torch.int32, device=device)
        self.prefix_index = torch.zeros(0, dtype=torch.int64, device=device)
        self.plan: Callable[[int], Extents] | None = None
        self.seen_tokens = 1
        self.pending: tuple[BranchCacheLayer, Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.pending = self.layers[layer_idx], key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0  # the mask is a placeholder for its rule

    def add_prompt(self, indices: Tensor, layers: list[tuple[Tensor, Tensor]]) -> int:
        """Store a prompt's keys and values; returns the prompt's number.

        indices: int64 [L], the indices of its tokens in the whole sequence.
        layers: keys and values [Hkv, L, D] of each layer.
        """
        if not self.layers:
            self.layers = [BranchCacheLayer(keys[None], values[None]) for keys, values in layers]
            if self.plan is not None:
                self.resize(self.plan(self.token_bytes))
                self.plan = None  # it refers to what refers to this cache
        begin, end = self.offsets[-1], self.offsets[-1] + len(indices)
        self.reserve(self.extents._replace(prefix=end))
        self.prefix_index[begin:end] = indices
        for layer, new in zip(self.layers, layers, strict=True):
            for store, tensor in zip(layer.stores, new, strict=True):
                store.prefix[:, begin:end] = tensor
        self._set_offsets([*self.offsets, end])
        return len(self.offsets) - 2

    @property
    def token_bytes(self) -> int:
        """The bytes of one token in all stores."""
        stores = [store.sequence for layer in self.layers for store in layer.stores]
        return sum(store.shape[0] * store.shape[2] * store.element_size() for store in stores)

    def keep_prompts(self, numbers: list[int]) -> None:
        """Forget every prompt but `numbers` (ascending), which are renumbered from 0."""
        spans = [(self.offsets[number], self.offsets[number + 1]) for number in numbers]
        index = on_device([key for span in spans for key in range(*span)], self.prefix_index.device)
        self.prefix_index[: len(index)] = self.prefix_index[index]
        for layer in self.layers:
            for store in layer.stores:
                store.prefix[:, : len(index)] = store.prefix.index_select(1, index.to(store.prefix.device))
        self._set_offsets(list(accumulate((end - begin for begin, end in spans), initial=0)))

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the suffixes of the slots `sources` to the slots `targets`, both int64 [n]."""
        for layer in self.layers:
            for store in layer.stores:
                device = store.suffix.device
                store.suffix[targets.to(device)] = store.suffix[sources.to(device)]

    def reserve(self, needed: Extents) -> None:
        """Make room for `needed` and, so that this is rare, for up to half as much again."""
        suffix = max(needed.suffix, _SUFFIX) if needed.suffix else 0
        needed = needed._replace(suffix=suffix)
        self.resize(Extents(*(max(have, bucket(need)) for have, need in zip(self.extents, needed, strict=True))))

    def resize(self, extents: Extents) -> None:
        """Grow every store to `extents`, none of which is less than before."""
        if extents == self.extents:
            return
        self.extents = extents
        self.prefix_index = grow(self.prefix_index, extents.prefix)
        for layer in self.layers:
            for store in layer.stores:
                store.resize(extents)

    def _set_offsets(self, offsets: list[int]) -> None:
        self.offsets = offsets
        if len(offsets) > len(self.prefix_offsets):
            self.prefix_offsets = self.prefix_offsets.new_zeros(bucket(len(offsets)))
        padded = offsets + offsets[-1:] * (len(self.prefix_offsets) - len(offsets))
        self.prefix_offsets.copy_(on_device(padded, self.prefix_offsets.device, torch.int32))
