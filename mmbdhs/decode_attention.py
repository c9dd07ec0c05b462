"""A decoder's attention during decoding, by way of transformers' attention interface.

`DecodeAttention` switches the decoder's layers to an implementation of its own for the length of a step. It takes each
layer's queries and newest keys to the key stores and fails loudly where a model does anything that it would not see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from mmbdhs.attention_gate import choose_path
from mmbdhs.attention_paths import Path, Rows
from mmbdhs.decoder_inputs import UnsupportedModelError
from mmbdhs.key_stores import KeyStores, SlotLayer

_NAME = "mmbdhs"
# What layers pass along that leaves attention as it is; anything else must be None.
_HARMLESS = {
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "use_cache",
}


class DecodeAttention:
    """Attention over `stores` for the layers of `decoder`."""

    def __init__(self, decoder: nn.Module, stores: KeyStores) -> None:
        configs = (getattr(module, "config", None) for module in decoder.modules())
        self._configs = list(
            {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values()
        )
        self._stores = stores
        self._paths: dict[SlotLayer, Path] = {}
        self._layers_seen = 0
        self._rows: Rows | None = None
        self._window = math.inf

    @contextmanager
    def over(self, rows: Rows) -> Iterator[None]:
        """For the length of the context, one decoder call, the layers' queries [n, Hq, 1, D] see what `rows` says.

        Raises UnsupportedModelError if a layer does not come through."""
        before = [config._attn_implementation for config in self._configs]
        token = _CURRENT.set(self)
        self._rows, self._layers_seen = rows, 0
        try:
            for config in self._configs:
                config._attn_implementation = _NAME
            yield
        finally:
            _CURRENT.reset(token)
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation = implementation
        if self._layers_seen != len(self._stores.layers):
            raise UnsupportedModelError(
                f"model: needs attention that goes through transformers' attention interface in every layer (what "
                f"model.set_attn_implementation sets), got {self._layers_seen} of {len(self._stores.layers)} layers"
            )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, softcap: float | None, window: int | None
    ) -> Tensor:
        """[n, 1, Hq, D]"""
        pending, self._stores.pending = self._stores.pending, None
        if pending is None or key is not pending[1] or value is not pending[2]:
            raise UnsupportedModelError(
                "model: needs layers that each attend to the keys and values that they handed to the cache"
            )
        layer, self._layers_seen = pending[0], self._layers_seen + 1
        self._window = min(self._window, window or math.inf)
        if layer not in self._paths:  # one path for the life of the stores: they rely on what each leaves behind
            self._paths[layer] = choose_path(query, key, value)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return self._paths[layer](layer, query, key, value, self._rows, scale, softcap or 0.0)[:, None]

    def check_window(self, keys: int) -> None:
        """Raises UnsupportedModelError if a layer has asked for a window of fewer than `keys` keys."""
        if keys > self._window:
            raise UnsupportedModelError(f"model: needs a sliding window of at least {keys} keys, got {self._window}")


_CURRENT: ContextVar[DecodeAttention] = ContextVar("decode_attention")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The registered implementation; its signature is the interface's."""
    unknown = [name for name, argument in others.items() if argument is not None and name not in _HARMLESS]
    unknown += ["attention_mask"] * (attention_mask is not None) + ["dropout"] * (dropout != 0)
    if unknown:
        raise UnsupportedModelError(
            f"model: needs plain causal attention while decoding, {type(module).__name__} asks for {unknown}"
        )
    return _CURRENT.get().attend(query, key, value, scaling, softcap, sliding_window), None


AttentionInterface.register(_NAME, _attend)
