"""Two ways to run the attention of a decoding step; `autotune` chooses between them.

Each row of a step is one branch with one query token. It sees the beginning of its own prompt's prefix and its own
suffix, to which the path first writes the newest key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmbdhs.decoding.kv_cache import BranchCacheLayer, Extents
from mmbdhs.native import SharedPrefix, backend, sdpa_attention
from mmbdhs.vlm import CAUSAL, LayerCall, MaskRule


@dataclass(frozen=True)
class DecodeBatch:
    """What the n rows of a step see; row i is the branch in slot i.

    suffix_positions: int64 [n], where each row's newest key goes in its suffix.
    prefix_count: int32 [n], how many tokens of its prompt a row sees.
    prompt_index: int32 [n], the number of a row's prompt.
    prefix_offsets: int32 [≥ prompts + 1], where each prompt begins in the prefix stores.
    extents: the sizes of the stores; `prefix` ends where no row sees a key any more.
    first_index: int64 [≥ slots], the index of each suffix's first token in its whole sequence.
    prefix_index: int64 [≥ prefix], the same for the tokens of the prefixes.
    rule: which of these indices the layers' masks let a query see.
    """

    suffix_positions: Tensor
    prefix_count: Tensor
    prompt_index: Tensor
    prefix_offsets: Tensor
    extents: Extents
    first_index: Tensor
    prefix_index: Tensor
    rule: MaskRule = CAUSAL

    def under(self, rule: MaskRule, device: torch.device) -> DecodeBatch:
        """The same batch on another device, for layers with another rule."""
        tensors: dict[str, Any] = {
            f.name: x.to(device) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)
        }
        return replace(self, rule=rule, **tensors)

    @functools.cached_property
    def slots(self) -> Tensor:
        """The slot of each row, int64 [n]."""
        return torch.arange(len(self.suffix_positions), device=self.suffix_positions.device)

    @functools.cached_property
    def suffix_length(self) -> Tensor:
        """The length of each row's suffix with its newest key, int32 [n]."""
        return (self.suffix_positions + 1).int()

    @functools.cached_property
    def mask(self) -> Tensor:
        """Which keys of a store's sequence each row sees, bool [n, slots · T + prefix]."""
        slots, suffix, prefix = (torch.arange(size, device=self.suffix_positions.device) for size in self.extents)
        own = (slots == self.slots[:, None])[:, :, None] & (suffix <= self.suffix_positions[:, None])[:, None]
        begin = self.prefix_offsets[self.prompt_index.long()][:, None]
        of_prompt = (prefix >= begin) & (prefix < begin + self.prefix_count[:, None])
        mask = torch.cat([own.flatten(1), of_prompt], dim=1)
        return mask if self.rule.causal else mask & self._seen_by_rule(suffix)

    def _seen_by_rule(self, suffix: Tensor) -> Tensor:
        suffixes = self.first_index[: self.extents.slots, None] + suffix
        keys = torch.cat([suffixes.flatten(), self.prefix_index[: self.extents.prefix]])
        queries = self.first_index[: len(self.suffix_positions)] + self.suffix_positions
        return self.rule(self.slots[:, None], queries[:, None], keys[None])


# (layer, call with queries [n, Hq, 1, D] and new keys and values [n, Hkv, 1, D], batch) -> [n, Hq, D]
Path = Callable[[BranchCacheLayer, LayerCall, DecodeBatch], Tensor]


def native_path(layer: BranchCacheLayer, call: LayerCall, batch: DecodeBatch) -> Tensor:
    """Attention by the native op: each row reads the keys that it sees and no others.

    The op is called without its checks: they would go through the same integers in every layer, and wait for them on
    a GPU. `autotune` has checked dtypes and shapes, and the pool keeps the numbers in range.
    """
    layer.write(batch.slots, batch.suffix_positions, call.key, call.value)
    count = len(call.query)
    operands = SharedPrefix(
        q=call.query[:, :, 0].contiguous(),
        k_prefix=layer.key_store.prefix,
        v_prefix=layer.value_store.prefix,
        prefix_count=batch.prefix_count,
        k_suffix=layer.key_store.suffix[:count],
        v_suffix=layer.value_store.suffix[:count],
        suffix_length=batch.suffix_length,
        example=batch.prompt_index,
        prefix_offsets=batch.prefix_offsets,
        scale=call.scale,
        softcap=call.softcap,
    )
    out, _ = backend.live().ops.shared_prefix_attention(operands)
    return out


def sdpa_path(layer: BranchCacheLayer, call: LayerCall, batch: DecodeBatch) -> Tensor:
    """Attention by PyTorch's SDPA over one sequence of all suffixes and prefixes, most of which a mask hides."""
    key, value = call.key, call.value
    layer.write(batch.slots, batch.suffix_positions, key.nan_to_num(0.0, 0.0, 0.0), value.nan_to_num(0.0, 0.0, 0.0))
    keys, values = (store.sequence[:, : batch.mask.shape[1]] for store in layer.stores)
    out = sdpa_attention(call.query[:, :, 0].transpose(0, 1), keys, values, batch.mask, call.scale, call.softcap)
    # A hidden key has weight 0, and 0 · NaN is NaN: so only finite numbers are stored, and a row whose newest key or
    # value is not finite becomes NaN here, by itself.
    spoiled = 0 * (key.sum((1, 2, 3), dtype=torch.float32) + value.sum((1, 2, 3), dtype=torch.float32))
    return out.transpose(0, 1) + spoiled[:, None, None].to(out.dtype)
