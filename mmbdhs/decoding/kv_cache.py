"""Keys and values of branches that decode together: each prompt's once, and each branch's own."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_PLACES = 16  # of a suffix at least: most sentences end within it


def bucket(count: int) -> int:
    """The least 2^n or 3 · 2^n that is at least `count`: few values, at most half apart."""
    power = 1 << (count - 1).bit_length() if count else 0
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power


def enlarged(store: Tensor, *shape: int) -> Tensor:
    """`store` as the leading corner of zeros of `shape`, or itself if it has that shape."""
    if store.shape == shape:
        return store
    larger = store.new_zeros(shape)
    larger[tuple(map(slice, store.shape))] = store
    return larger


class Store:
    """Keys or values of one layer, zeros where nothing was written.

    row: [Hkv, slots · T + P, D], every slot's suffix and then prompt after prompt's prefix, so that they are one
    sequence to whoever wants one. suffix [slots, Hkv, T, D] and prefix [Hkv, P, D] are views of it.
    """

    def __init__(self, like: Tensor) -> None:
        """like: [n, Hkv, L, D]"""
        self.row = like.new_zeros(like.shape[1], 0, like.shape[3])
        self._set_views(0, 0)

    def resize(self, slots: int, places: int, prefix: int) -> None:
        """Make room for `places` keys in each of `slots` suffixes and `prefix` keys of prompts, no less than before."""
        before = self.suffix, self.prefix
        self.row = self.row.new_zeros(self.row.shape[0], slots * places + prefix, self.row.shape[2])
        self._set_views(slots, places)
        for view, old in zip((self.suffix, self.prefix), before, strict=True):
            view[tuple(map(slice, old.shape))] = old

    def _set_views(self, slots: int, places: int) -> None:
        self.suffix = self.row[:, : slots * places].unflatten(1, (slots, places)).transpose(0, 1)
        self.prefix = self.row[:, slots * places :]


class SlotLayer(DynamicLayer):
    """The stores of one layer."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """keys [n, Hkv, L, D], values [n, Hkv, L, Dv]: tell heads, sizes, dtype and device."""
        super().__init__()
        self.stores = self.key_store, self.value_store = Store(keys), Store(values)
        self.is_initialized = True

    def write(self, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys, values [n, Hkv, 1, D] of `slots` (int64 [n]) at `places` (int64 [n]) of their suffixes."""
        self.key_store.suffix[slots, :, places] = keys[:, :, 0]
        self.value_store.suffix[slots, :, places] = values[:, :, 0]


class KeyStores(Cache):
    """The cache of decoding. `update` stores nothing: it notes whose keys come next, and the attention that follows
    writes them (see `decode_attention`).

    slots, places, prefix: the extents of every store.
    offsets: the prompts' prefixes lie at offsets[e] … offsets[e + 1] of the prefix stores.
    prefix_offsets: the same on the device, int32 [≥ prompts + 1], its last entry repeated.
    prefix_index: int64 [prefix], where the prefixes' tokens stand in their whole sequences.
    seen_tokens: what a model hears that asks how many tokens came before. One number cannot be true of all branches;
        `probe` sees to it that it does not matter.
    """

    layers: list[SlotLayer]

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self.slots = self.places = self.prefix = 0
        self.offsets = [0]
        self.prefix_offsets = torch.zeros(2, dtype=torch.int32, device=device)
        self.prefix_index = torch.zeros(0, dtype=torch.int64, device=device)
        self.seen_tokens = 1
        self.pending: tuple[SlotLayer, Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.pending = self.layers[layer_idx], key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0  # of a mask that only stands for its rule

    def add_prompt(self, indices: Tensor, layers: list[tuple[Tensor, Tensor]]) -> int:
        """Store a prompt's keys and values, [Hkv, L, D] for each layer, and the indices of its tokens, int64 [L];
        returns the prompt's number."""
        if not self.layers:
            self.layers = [SlotLayer(keys[None], values[None]) for keys, values in layers]
        begin, end = self.offsets[-1], self.offsets[-1] + len(indices)
        self._reserve(self.slots, self.places, end)
        self.prefix_index[begin:end] = indices
        for layer, new in zip(self.layers, layers, strict=True):
            for store, tensor in zip(layer.stores, new, strict=True):
                store.prefix[:, begin:end] = tensor
        self._set_offsets([*self.offsets, end])
        return len(self.offsets) - 2

    def keep_prompts(self, numbers: list[int]) -> None:
        """Forget every prompt but `numbers` (ascending), which are numbered anew from 0."""
        spans = [(self.offsets[number], self.offsets[number + 1]) for number in numbers]
        index = torch.tensor([place for span in spans for place in range(*span)], dtype=torch.int64)
        self.prefix_index[: len(index)] = self.prefix_index[index.to(self.prefix_index.device)]
        for layer in self.layers:
            for store in layer.stores:
                store.prefix[:, : len(index)] = store.prefix.index_select(1, index.to(store.prefix.device))
        self._set_offsets(list(accumulate((end - begin for begin, end in spans), initial=0)))

    def reserve(self, slots: int, places: int) -> None:
        """Make room for `places` keys in each of `slots` suffixes."""
        self._reserve(slots, max(places, _PLACES), self.prefix)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the suffixes of the slots `sources` to the slots `targets`."""
        for layer in self.layers:
            for store in layer.stores:
                store.suffix[targets] = store.suffix[sources]

    def _reserve(self, *needed: int) -> None:
        extents = self.slots, self.places, self.prefix
        grown = tuple(max(have, bucket(need)) for have, need in zip(extents, needed, strict=True))
        if grown == extents:
            return
        self.slots, self.places, self.prefix = grown
        self.prefix_index = enlarged(self.prefix_index, self.prefix)
        for layer in self.layers:
            for store in layer.stores:
                store.resize(*grown)

    def _set_offsets(self, offsets: list[int]) -> None:
        self.offsets = offsets
        if len(offsets) > len(self.prefix_offsets):
            self.prefix_offsets = self.prefix_offsets.new_zeros(bucket(len(offsets)))
        padded = offsets + offsets[-1:] * (len(self.prefix_offsets) - len(offsets))
        self.prefix_offsets.copy_(torch.tensor(padded, dtype=torch.int32))
