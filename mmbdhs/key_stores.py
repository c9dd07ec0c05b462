"""Keys and values of branches that decode together: each prompt's once, and each branch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from mmbdhs.decoder_inputs import UnsupportedModelError

_PLACES = 16  # of a suffix at least: most sentences end within it


def bucket(count: int) -> int:
    """The least 2^n or 3 · 2^n that is at least `count`: capacities and row counts take few values, a third apart."""
    power = 1 << (count - 1).bit_length() if count else 0
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power


def enlarged(store: Tensor, *shape: int) -> Tensor:
    """`store` as the leading corner of zeros of `shape`, or itself if it has that shape."""
    if store.shape == shape:
        return store
    larger = store.new_zeros(shape)
    larger[tuple(map(slice, store.shape))] = store
    return larger


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, zeros where nothing was written.

    prefix_keys, prefix_values: [Hkv, P, D], prompt after prompt. keys, values: [slots, Hkv, T, D], a branch's own.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """keys, values: [1, Hkv, …, D], as a prefill leaves them."""
        super().__init__()
        self.prefix_keys, self.prefix_values = (x.new_zeros(x.shape[1], 0, x.shape[-1]) for x in (keys, values))
        self.keys, self.values = (x.new_zeros(0, x.shape[1], 0, x.shape[-1]) for x in (keys, values))
        self.is_initialized = True

    def write(self, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys, values [n, Hkv, 1, D] of `slots` (int64 [n]) at `places` (int64 [n]) of their suffixes."""
        self.keys[slots, :, places] = keys[:, :, 0]
        self.values[slots, :, places] = values[:, :, 0]

    def get_seq_length(self) -> int:
        raise UnsupportedModelError("model: needs position ids that it takes as given; it counts the keys of its cache")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise UnsupportedModelError(
            "model: needs attention without a mask for implementations that make none; it builds a mask of its own"
        )


class KeyStores(Cache):
    """The cache of decoding. `update` stores nothing: it notes whose keys come next, and the attention that follows
    writes them (see `decode_attention`).

    offsets: the prompts' prefixes lie at offsets[e] … offsets[e + 1] of the prefix stores.
    prefix_offsets: the same on the device, int32 [≥ prompts + 1], its last entry repeated.
    """

    layers: list[SlotLayer]

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self.offsets = [0]
        self.prefix_offsets = torch.zeros(2, dtype=torch.int32, device=device)
        self.pending: tuple[SlotLayer, Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.pending = self.layers[layer_idx], key_states, value_states
        return key_states, value_states

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of everything that a captured step reads or writes here."""
        layer = self.layers[0]
        return layer.prefix_keys.shape, layer.keys.shape, self.prefix_offsets.shape

    def add_prompt(self, layers: list[tuple[Tensor, Tensor]]) -> int:
        """Store a prompt's keys and values, [Hkv, L, D] for each layer; returns the prompt's number."""
        if not self.layers:
            self.layers = [SlotLayer(keys[None], values[None]) for keys, values in layers]
        begin, end = self.offsets[-1], self.offsets[-1] + layers[0][0].shape[1]
        for layer, (keys, values) in zip(self.layers, layers, strict=True):
            layer.prefix_keys, layer.prefix_values = (
                store if end <= store.shape[1] else enlarged(store, store.shape[0], bucket(end), store.shape[2])
                for store in (layer.prefix_keys, layer.prefix_values)
            )
            layer.prefix_keys[:, begin:end], layer.prefix_values[:, begin:end] = keys, values
        self._set_offsets([*self.offsets, end])
        return len(self.offsets) - 2

    def keep_prompts(self, numbers: list[int]) -> None:
        """Forget every prompt but `numbers` (ascending), which are numbered anew from 0."""
        spans = [(self.offsets[number], self.offsets[number + 1]) for number in numbers]
        index = torch.cat([torch.arange(*span) for span in spans] or [torch.arange(0)])
        for layer in self.layers:
            for store in (layer.prefix_keys, layer.prefix_values):
                store[:, : len(index)] = store.index_select(1, index.to(store.device))
        self._set_offsets([0, *torch.tensor([end - begin for begin, end in spans]).cumsum(0).tolist()])

    def reserve(self, slots: int, places: int) -> None:
        """Make room for `places` keys in each of `slots` suffixes."""
        rows, heads, length, _ = self.layers[0].keys.shape
        if slots <= rows and places <= length:
            return
        shape = max(rows, bucket(slots)), heads, max(length, bucket(places), _PLACES)
        for layer in self.layers:
            layer.keys, layer.values = (enlarged(x, *shape, x.shape[-1]) for x in (layer.keys, layer.values))

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the suffixes of the slots `sources` into the slots `targets`, int64 [n] each."""
        for layer in self.layers:
            for store in (layer.keys, layer.values):
                store[targets] = store[sources]

    def _set_offsets(self, offsets: list[int]) -> None:
        self.offsets = offsets
        if len(offsets) > len(self.prefix_offsets):
            self.prefix_offsets = self.prefix_offsets.new_zeros(bucket(len(offsets)))
        padded = offsets + offsets[-1:] * (len(self.prefix_offsets) - len(offsets))
        self.prefix_offsets.copy_(torch.tensor(padded, dtype=torch.int32))
