"""The text decoder of a vision-language model, and whether hidden tokens can be left out of it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mmbdhs.errors import UnsupportedModelError

# Masks of these layers are built from token indices, which are known. Any other kind mixes tokens in its own way.
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


def find_text_decoder(model: Any) -> PreTrainedModel:
    """The module that runs the decoder layers over `inputs_embeds`.

    Raises UnsupportedModelError for a model that has none of its own.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else None
    if decoder is None or decoder is model:
        raise UnsupportedModelError(
            f"model: needs get_decoder() to return its text decoder, got {type(model).__name__} without one"
        )
    while (inner := _inside(decoder)) is not decoder:
        decoder = inner
    return decoder


def _inside(decoder: Any) -> PreTrainedModel:
    """The decoder inside a causal language model or a model around one; the argument itself if there is none."""
    if hasattr(decoder, "lm_head"):
        return next((child for child in decoder.children() if isinstance(child, PreTrainedModel)), decoder)
    get_decoder = getattr(decoder, "get_decoder", None)
    return get_decoder() if get_decoder else decoder


def check_layers(decoder: PreTrainedModel) -> None:
    """Raises UnsupportedModelError if the configuration tells that layers see token order through more than position
    ids and masks: leaving tokens out would then differ from masking them."""
    config: Any = decoder.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError("model: needs a decoder-only language model, got an encoder-decoder")
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if unknown or getattr(config, "alibi", False):
        raise UnsupportedModelError(
            "model: needs layers that see token order only through position ids and masks, "
            f"got {unknown or ['alibi']} in {type(decoder).__name__}"
        )


def modules_around(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """The modules that the decoder is a part of, from the model inwards."""
    name = next(name for name, module in model.named_modules() if module is decoder)
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
