"""A decoder's last layer, computed only for the tokens whose output is read.

The other tokens need no more than their keys and values. The layer's own forward runs twice: over all tokens up to its
attention, which takes their keys and values and ends the run; then over the tokens that are read, which attend to
those. So it may be any layer that sees other tokens in its attention alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig, PreTrainedModel

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm import LayerCall, RuleMask, attention_through, replaced_forward


class WindowAttention(Protocol):
    """Attention of a window of tokens in each row, of the same size in every row."""

    def attend_windows(self, call: LayerCall) -> Tensor:
        """The windows' queries [B, Hq, K, D] over the rows' keys and values [B, Hkv, L, D] -> [B, K, Hq, D]."""


def last_layer(decoder: PreTrainedModel) -> Any:
    """The layer that runs last. Raises UnsupportedModelError for a decoder without a list of its layers."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"model: needs a decoder with its layers in a list `layers`, got {type(decoder).__name__} without one"
        )
    return layers[decoder.config.num_hidden_layers - 1]


class LastLayer:
    """Drop-in replacement for a layer's forward: outputs for the tokens in `windows` alone, zeros elsewhere.

    layer: the layer.
    attention: runs the attention of the windows.
    windows: int64 [B, K], the tokens of each of B rows whose output is read.
    length: L, how many tokens a row has.
    configs: the configurations that the layer reads.
    """

    def __init__(
        self,
        layer: Any,
        attention: WindowAttention,
        windows: Tensor,
        length: int,
        configs: list[PreTrainedConfig],
    ) -> None:
        self._layer, self._forward, self._attention, self._configs = layer, layer.forward, attention, configs
        self._windows, self._length = windows, length
        self._checkpoint = layer._gradient_checkpointing_func if _is_checkpointed(layer) else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Replaces the layer's forward for the length of the context."""
        with _without_checkpoints(self._layer), replaced_forward(self._layer, self._run):
            yield

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._checkpoint is None:
            return self._run_twice(*args, **kwargs)
        # One checkpoint around both runs of the layer, not one in each.
        return self._checkpoint(partial(self._run_twice, **kwargs), *args)

    def _run_twice(self, *args: Any, **kwargs: Any) -> Any:
        keys = _KeepKeys()
        with _without_checkpoints(self._layer):
            try:
                with attention_through(keys, self._configs):
                    return self._forward(*args, **kwargs)  # a layer without attention ends here
            except _AtTheAttention:
                args, kwargs = tree_map(self._windows_of, (args, kwargs))
            with attention_through(_WindowQueries(keys.call, self._attention), self._configs):
                return tree_map(self._with_zeros, self._forward(*args, **kwargs))

    def _windows_of(self, leaf: Any) -> Any:
        """The windows of an argument [..., B, L, ...]; any other argument unchanged."""
        dim = _rows_dim(leaf, len(self._windows), self._length)
        return leaf if dim is None else leaf[self._index(dim, leaf)]

    def _with_zeros(self, leaf: Any) -> Any:
        """An output [..., B, K, ...] as [..., B, L, ...], with zeros outside the windows."""
        rows, count = self._windows.shape
        dim = _rows_dim(leaf, rows, count)
        if dim is None:
            return leaf
        whole = leaf.new_zeros(*leaf.shape[:dim], rows, self._length, *leaf.shape[dim + 2 :])
        whole[self._index(dim, leaf)] = leaf
        return whole

    def _index(self, dim: int, leaf: Tensor) -> tuple[Any, ...]:
        windows = self._windows.to(leaf.device)
        rows = windows.new_tensor(range(len(windows)))[:, None]
        return *[slice(None)] * dim, rows, windows


def _rows_dim(leaf: Any, rows: int, tokens: int) -> int | None:
    """The dimension at which a tensor's shape has rows × tokens; None if there is none. A mask that carries a rule
    needs no cutting."""
    if not isinstance(leaf, Tensor) or isinstance(leaf, RuleMask):
        return None
    return next((dim for dim in range(leaf.ndim - 1) if leaf.shape[dim : dim + 2] == (rows, tokens)), None)


def _is_checkpointed(layer: Any) -> bool:
    return layer.training and getattr(layer, "gradient_checkpointing", False)


@contextmanager
def _without_checkpoints(layer: Any) -> Iterator[None]:
    checkpointed = _is_checkpointed(layer)
    if checkpointed:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        if checkpointed:
            layer.gradient_checkpointing = True


class _AtTheAttention(Exception):
    """Ends the layer's forward once its keys and values are known."""


class _KeepKeys:
    """Attention handler that keeps the layer's call."""

    call: LayerCall

    def attend(self, call: LayerCall) -> NoReturn:
        self.call = call
        raise _AtTheAttention


class _WindowQueries:
    """Attention handler for the windows' queries, over the keys and values of the whole rows."""

    def __init__(self, whole: LayerCall, attention: WindowAttention) -> None:
        self._whole, self._attention = whole, attention

    def attend(self, call: LayerCall) -> Tensor:
        return self._attention.attend_windows(call._replace(key=self._whole.key, value=self._whole.value))
