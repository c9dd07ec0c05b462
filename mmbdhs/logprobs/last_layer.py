"""The last layer of a decoder of which only some tokens are read: of the others it makes keys and values, nothing else.

The layer's own forward runs twice: over all tokens up to its attention, which takes their keys and values and ends it,
then over the tokens that are read, which attend to those. So it may be any layer that sees other tokens in its
attention alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm import LayerCall, RuleMask, running_instead, switched


class WindowAttention(Protocol):
    """Attention of a window of tokens in each row, as many in one row as in another."""

    def attend_windows(self, call: LayerCall) -> Tensor:
        """The windows' queries [B, Hq, K, D] over the rows' keys and values [B, Hkv, L, D] -> [B, K, Hq, D]"""


def last_layer(decoder: nn.Module) -> nn.Module:
    """The module. Raises UnsupportedModelError for a decoder without a list of its layers."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"model: needs a decoder with its layers in a list `layers`, got {type(decoder).__name__} without one"
        )
    return layers[decoder.config.num_hidden_layers - 1]


class LastLayer:
    """To stand for a layer's forward: takes what that takes, returns what that returns in the windows and 0 elsewhere.

    windows: int64 [B, K], which of the tokens of B rows are read. length: L, how many tokens a row has.
    configs: that the layer reads.
    """

    def __init__(
        self,
        layer: nn.Module,
        attention: WindowAttention,
        windows: Tensor,
        length: int,
        configs: list[PreTrainedConfig],
    ) -> None:
        self._layer, self._forward, self._attention, self._configs = layer, layer.forward, attention, configs
        self._windows, self._length = windows, length
        self._checkpoint = layer._gradient_checkpointing_func if _checkpointed(layer) else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The layer runs by this for the length of the context."""
        with _without_checkpoints(self._layer), running_instead(self._layer, self._run):
            yield

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._checkpoint is None:
            return self._read(*args, **kwargs)
        return self._checkpoint(partial(self._read, **kwargs), *args)  # around both runs of the layer, not in each

    def _read(self, *args: Any, **kwargs: Any) -> Any:
        whole = _Keys()
        with _without_checkpoints(self._layer):
            try:
                with switched(self._configs, whole):
                    return self._forward(*args, **kwargs)  # by a layer that attends to nothing
            except _AtTheAttention:
                args, kwargs = tree_map(self._cut, (args, kwargs))
            with switched(self._configs, _Queries(whole.call, self._attention)):
                return tree_map(self._spread, self._forward(*args, **kwargs))

    def _cut(self, leaf: Any) -> Any:
        """The windows of an argument [..., B, L, ...]; any other as it is."""
        place = _place(leaf, len(self._windows), self._length)
        return leaf if place is None else leaf[self._index(place, leaf)]

    def _spread(self, leaf: Any) -> Any:
        """[..., B, K, ...] -> [..., B, L, ...]"""
        rows, count = self._windows.shape
        place = _place(leaf, rows, count)
        if place is None:
            return leaf
        whole = leaf.new_zeros(*leaf.shape[:place], rows, self._length, *leaf.shape[place + 2 :])
        whole[self._index(place, leaf)] = leaf
        return whole

    def _index(self, place: int, leaf: Tensor) -> tuple[Any, ...]:
        windows = self._windows.to(leaf.device)
        rows = windows.new_tensor(range(len(windows)))[:, None]
        return *[slice(None)] * place, rows, windows


def _place(leaf: Any, rows: int, tokens: int) -> int | None:
    """Where rows × tokens stand in a tensor's shape; a mask that is a rule holds for any of them."""
    if not isinstance(leaf, Tensor) or isinstance(leaf, RuleMask):
        return None
    places = range(leaf.ndim - 1)
    return next((place for place in places if leaf.shape[place : place + 2] == (rows, tokens)), None)


def _checkpointed(layer: nn.Module) -> bool:
    return layer.training and getattr(layer, "gradient_checkpointing", False)


@contextmanager
def _without_checkpoints(layer: nn.Module) -> Iterator[None]:
    checkpointed = _checkpointed(layer)
    if checkpointed:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        if checkpointed:
            layer.gradient_checkpointing = True


class _AtTheAttention(Exception):
    """Ends the layer's forward once its keys and values are known."""


class _Keys:
    """Handler that keeps the layer's call."""

    call: LayerCall

    def attend(self, call: LayerCall) -> NoReturn:
        self.call = call
        raise _AtTheAttention


class _Queries:
    """Handler for the windows' queries, over the keys and values of `whole`."""

    def __init__(self, whole: LayerCall, attention: WindowAttention) -> None:
        self._whole, self._attention = whole, attention

    def attend(self, call: LayerCall) -> Tensor:
        return self._attention.attend_windows(call._replace(key=self._whole.key, value=self._whole.value))
