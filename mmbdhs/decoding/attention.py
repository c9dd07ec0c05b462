"""A decoder's attention during decoding: each layer's queries and newest keys go to the key stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmbdhs.decoding.attention_paths import Path, Rows
from mmbdhs.decoding.autotune import choose_path
from mmbdhs.decoding.kv_cache import KeyStores, SlotLayer
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm import LayerCall, MaskRule, find_text_decoder, mask_configs, not_every_layer, rule_of, switched


class DecodeAttention:
    """Attention over `stores` for the layers of the model's decoder."""

    def __init__(self, model: nn.Module, stores: KeyStores) -> None:
        self._configs, self._stores = mask_configs(model, find_text_decoder(model)), stores
        self._paths: dict[SlotLayer, Path] = {}
        self._handed: list[tuple[SlotLayer, Tensor, Tensor]] = []  # layers, with their newest keys and values
        self._rows: dict[tuple[MaskRule, torch.device], Rows] = {}

    @contextmanager
    def over(self, rows: Rows) -> Iterator[None]:
        """For the length of the context, one decoder call, the layers' queries [n, Hq, 1, D] see what `rows` says.

        Raises UnsupportedModelError if a layer does not come through."""
        self._rows, self._handed = {(rows.rule, rows.places.device): rows}, []
        with switched(self._configs, self):
            yield
        if len(self._handed) != len(self._stores.layers):
            raise not_every_layer(len(self._handed), len(self._stores.layers))

    def attend(self, call: LayerCall) -> Tensor:
        layer, operands = self._layer(call.key, call.value), (call.query, call.key, call.value)
        rule = rule_of(call.mask)
        if layer not in self._paths:  # one path for the life of the stores: they rely on what each leaves behind
            self._paths[layer] = choose_path(*operands, rule)
        rows = self._rows_for(rule, call.query.device)
        return self._paths[layer](layer, *operands, rows, call.scale, call.softcap)[:, None]

    def _layer(self, key: Tensor, value: Tensor) -> SlotLayer:
        """Whose keys and values these are: those that came last, or those of a layer before, which others share."""
        if self._stores.pending is not None:
            self._handed.append(self._stores.pending)
            self._stores.pending = None
        for layer, *newest in reversed(self._handed):
            if key is newest[0] and value is newest[1]:
                return layer
        raise UnsupportedModelError(
            "model: needs layers that attend to the keys and values that were handed to the cache, as they are"
        )

    def _rows_for(self, rule: MaskRule, device: torch.device) -> Rows:
        if (rule, device) not in self._rows:
            self._rows[rule, device] = next(iter(self._rows.values())).under(rule, device)
        return self._rows[rule, device]
