"""Two ways to run the attention of a decoding step; `attention_gate` chooses.

Each row of a step is one branch with one query token. It sees the beginning of its own prompt's prefix and its own
suffix, whose newest key the path writes first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from mmbdhs.decoding.kv_cache import SlotLayer
from mmbdhs.native import SharedPrefix, backend, softmax_attention
from mmbdhs.vlm import CAUSAL, MaskRule


@dataclass(frozen=True)
class Rows:
    """What the rows of a step see; row i stands in slot i.

    places: int64 [n], where each row's newest key goes in its suffix. prefix_count, example: int32 [n].
    prefix_offsets: int32 [≥ examples + 1]. extents: slots and T of the stores, and how far into the prefix rows look.
    first_index: int64 [≥ slots], prefix_index: int64 [≥ prefix], where the first token of each suffix and the tokens
        of the prefixes stand in their whole sequences; rule: what the layers' masks make of these indices.
    """

    places: Tensor
    prefix_count: Tensor
    example: Tensor
    prefix_offsets: Tensor
    extents: tuple[int, int, int]
    first_index: Tensor
    prefix_index: Tensor
    rule: MaskRule = CAUSAL

    def under(self, rule: MaskRule, device: torch.device) -> Rows:
        """The same on another device, for layers with another rule."""
        tensors = {f.name: x.to(device) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, rule=rule, **tensors)

    @functools.cached_property
    def slots(self) -> Tensor:
        """int64 [n]"""
        return torch.arange(len(self.places), device=self.places.device)

    @functools.cached_property
    def suffix_length(self) -> Tensor:
        """int32 [n], the newest key included."""
        return (self.places + 1).int()

    @functools.cached_property
    def mask(self) -> Tensor:
        """bool [n, slots · T + prefix], over a store's row."""
        slots, places, prefix = (torch.arange(extent, device=self.places.device) for extent in self.extents)
        own = (slots == self.slots[:, None])[:, :, None] & (places <= self.places[:, None])[:, None]
        begin = self.prefix_offsets[self.example.long()][:, None]
        of_prompt = (prefix >= begin) & (prefix < begin + self.prefix_count[:, None])
        mask = torch.cat([own.flatten(1), of_prompt], dim=1)
        return mask if self.rule.causal else mask & self._seen_by_rule(places)

    def _seen_by_rule(self, places: Tensor) -> Tensor:
        suffixes = self.first_index[: self.extents[0], None] + places
        keys = torch.cat([suffixes.flatten(), self.prefix_index[: self.extents[2]]])
        queries = self.first_index[: len(self.places)] + self.places
        return self.rule(self.slots[:, None], queries[:, None], keys[None])


# (layer, q [n, Hq, 1, D], new keys and values [n, Hkv, 1, D], rows, scale, softcap) -> [n, Hq, D]
Path = Callable[[SlotLayer, Tensor, Tensor, Tensor, Rows, float, float], Tensor]


def native_path(
    layer: SlotLayer, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, softcap: float
) -> Tensor:
    """Each row reads the keys that it sees and no others.

    The op is called behind its checks: they would go through the same integers in every layer, and on a GPU wait for
    them. `attention_gate` has checked the kinds and shapes, and the pool keeps the numbers in range."""
    layer.write(rows.slots, rows.places, key, value)
    count = len(query)
    operands = SharedPrefix(
        q=query[:, :, 0].contiguous(),
        k_prefix=layer.key_store.prefix,
        v_prefix=layer.value_store.prefix,
        prefix_count=rows.prefix_count,
        k_suffix=layer.key_store.suffix[:count],
        v_suffix=layer.value_store.suffix[:count],
        suffix_length=rows.suffix_length,
        example=rows.example,
        prefix_offsets=rows.prefix_offsets,
        scale=scale,
        softcap=softcap,
    )
    out, _ = backend.live().ops.shared_prefix_attention(operands)
    return out


def sdpa_path(
    layer: SlotLayer, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, softcap: float
) -> Tensor:
    """PyTorch's SDPA over one sequence of all suffixes and all prefixes, most of which a mask hides."""
    layer.write(rows.slots, rows.places, key.nan_to_num(0.0, 0.0, 0.0), value.nan_to_num(0.0, 0.0, 0.0))
    keys, values = (store.row[:, : rows.mask.shape[1]] for store in layer.stores)
    query = query[:, :, 0].transpose(0, 1)
    if softcap:  # which SDPA does not know
        out, _ = softmax_attention(query, keys, values, rows.mask, scale, softcap)
    else:
        grouped = len(query) != len(keys)
        (out,) = functional.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=rows.mask[None, None], scale=scale, enable_gqa=grouped
        )
    # A hidden key weighs 0, and 0 · NaN is NaN: what is stored is finite, and what was not spoils its own row alone.
    spoiled = 0 * (key.sum((1, 2, 3), dtype=torch.float32) + value.sum((1, 2, 3), dtype=torch.float32))
    return out.transpose(0, 1) + spoiled[:, None, None].to(out.dtype)
