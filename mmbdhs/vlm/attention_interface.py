"""A decoder's attention by way of transformers' attention interface: switched to a handler of ours for the length of
a call. It fails loudly where a model asks for anything that the handlers would not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.vlm.mask_rules import NAME

# What layers pass along that leaves attention as it is, or what their masks say already; all else must be None.
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
    """What a layer asks of its attention: query [n, Hq, L, D] over key, value [n, Hkv, L', D]; softcap 0 is none."""

    layer: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float


class Handler(Protocol):
    """Runs the attention of every layer while it is switched on."""

    def attend(self, call: LayerCall) -> Tensor:
        """[n, L, Hq, D]"""


def not_every_layer(seen: int, layers: int) -> UnsupportedModelError:
    """For a decoder of which only `seen` layers came through."""
    return UnsupportedModelError(
        "model: needs attention that goes through transformers' attention interface in every layer (what "
        f"model.set_attn_implementation sets), got {seen} of {layers} layers"
    )


def decoder_configs(decoder: nn.Module) -> list[PreTrainedConfig]:
    """The configurations that the decoder's layers read."""
    return _distinct(getattr(module, "config", None) for module in decoder.modules())


def mask_configs(model: nn.Module, decoder: nn.Module) -> list[PreTrainedConfig]:
    """Those, and the text configurations that the modules around the decoder may build masks by."""
    name = next(name for name, module in model.named_modules() if module is decoder)
    parts = name.split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    configs = [module.config for module in around if isinstance(getattr(module, "config", None), PreTrainedConfig)]
    return _distinct([*decoder_configs(decoder), *(config.get_text_config() for config in configs)])


def _distinct(configs: Iterable[Any]) -> list[PreTrainedConfig]:
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


@contextmanager
def switched(configs: list[PreTrainedConfig], handler: Handler | None) -> Iterator[None]:
    """For the length of the context layers that read `configs` attend through `handler`, their masks are rules."""
    before = [config._attn_implementation for config in configs]
    token = _CURRENT.set(handler)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        _CURRENT.reset(token)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


_CURRENT: ContextVar[Handler | None] = ContextVar("attention_handler", default=None)


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
    """The registered implementation; its signature is the interface's."""
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


AttentionInterface.register(NAME, _attend)
