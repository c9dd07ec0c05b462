"""The decoder's attention, taken over through transformers' attention interface for the length of a call.

A model that asks for anything that the library's handlers would not see is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm.mask_rules import IMPLEMENTATION
from mmbdhs.vlm.text_decoder import modules_around

# Arguments that leave attention as it is, or that repeat what the mask says. Any other argument must be None.
_HARMLESS = {
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "sliding_window",
    "use_cache",
}


class LayerCall(NamedTuple):
    """One layer's call of its attention.

    query: [n, Hq, L, D].
    key, value: [n, Hkv, L', D].
    mask: as the decoder made it; None where it made none.
    scale: factor of the scores.
    softcap: limit of the scores; 0 for none.
    """

    layer: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float


class AttentionHandler(Protocol):
    """Runs the attention of every layer while it is switched on."""

    def attend(self, call: LayerCall) -> Tensor:
        """The attention's output, [n, L, Hq, D]."""


def not_every_layer(seen: int, layers: int) -> UnsupportedModelError:
    """The error for a decoder of which only `seen` of `layers` layers called the handler."""
    return UnsupportedModelError(
        "model: needs attention that goes through transformers' attention interface in every layer (what "
        f"model.set_attn_implementation sets), got {seen} of {layers} layers"
    )


def decoder_configs(decoder: nn.Module) -> list[PreTrainedConfig]:
    """The configurations that the decoder's layers read."""
    return _distinct(getattr(module, "config", None) for module in decoder.modules())


def mask_configs(model: nn.Module, decoder: nn.Module) -> list[PreTrainedConfig]:
    """The decoder's configurations, and the text configurations by which the modules around it may build masks."""
    configs = _distinct(getattr(module, "config", None) for module in modules_around(model, decoder))
    return _distinct([*decoder_configs(decoder), *(config.get_text_config() for config in configs)])


def _distinct(configs: Iterable[Any]) -> list[PreTrainedConfig]:
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


@contextmanager
def attention_through(handler: AttentionHandler | None, configs: list[PreTrainedConfig]) -> Iterator[None]:
    """For the length of the context, layers that read `configs` attend through `handler` and their masks are rules.

    handler: None where masks are built but no layer may attend.
    """
    before = [config._attn_implementation for config in configs]
    token = _CURRENT.set(handler)
    try:
        for config in configs:
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        _CURRENT.reset(token)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


_CURRENT: ContextVar[AttentionHandler | None] = ContextVar("attention_handler", default=None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The registered implementation; its signature is that of transformers' attention functions."""
    unknown = [name for name, argument in others.items() if argument is not None and name not in _HARMLESS]
    unknown += ["dropout"] * (dropout != 0)
    handler = _CURRENT.get()
    if unknown or handler is None:
        raise UnsupportedModelError(
            f"model: needs plain attention, in its text decoder alone, {type(module).__name__} asks for "
            f"{unknown or 'attention before the decoder'}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return handler.attend(LayerCall(module, query, key, value, attention_mask, scale, softcap or 0.0)), None


AttentionInterface.register(IMPLEMENTATION, _attend)
