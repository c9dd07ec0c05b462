"""Where a model's text decoder is, and whether it is one that hidden tokens can be left out of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from mmbdhs.errors import UnsupportedModelError

_IMAGE_TOKEN_ATTRIBUTES = ("image_token_id", "image_token_index")
# Their masks are built from token indices, which are known; any other kind mixes tokens in a way of its own.
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


def unwrapped(model: nn.Module) -> nn.Module:
    """The `transformers` model inside wrappers: torch.compile, (Distributed)DataParallel, PEFT.

    Raises UnsupportedModelError for wrappers without which the model does not work.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise _sharded("inside FullyShardedDataParallel.summon_full_params from the module that it wraps")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        elif not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):  # PEFT
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                raise UnsupportedModelError("model: needs adapters inside its layers, got PEFT prompt learning")
            model = model.get_base_model()
        else:
            return model


def runnable(model: nn.Module) -> nn.Module:
    """What `unwrapped` finds, if its decoder can run here. Raises UnsupportedModelError for one that lies in parts on
    several devices, all of which would have to run it."""
    model = unwrapped(model)
    embeddings = next(model.get_input_embeddings().parameters(), None)
    if isinstance(embeddings, DTensor) and any(isinstance(module, FSDPModule) for module in model.modules()):
        raise _sharded("behind unshard() and set_reshard_after_forward(False) of each module that is sharded")
    return model


def _sharded(remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"model: needs whole parameters, got a model sharded by FSDP; use it {remedy}")


def find_text_decoder(model: nn.Module) -> nn.Module:
    """The module that runs the decoder layers over `inputs_embeds`."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else None
    if decoder is None or decoder is model:
        raise UnsupportedModelError(
            f"model: needs a text decoder of its own behind get_decoder(), got {type(model).__name__} without one"
        )
    while (inner := _inside(decoder)) is not decoder:
        decoder = inner
    return decoder


def _inside(decoder: nn.Module) -> nn.Module:
    """The decoder inside a causal language model or a model around one; itself if there is none."""
    if hasattr(decoder, "lm_head"):
        return next((child for child in decoder.children() if isinstance(child, PreTrainedModel)), decoder)
    get_decoder = getattr(decoder, "get_decoder", None)
    return get_decoder() if get_decoder else decoder


def context_length(model: nn.Module) -> float:
    """How many tokens the decoder can take."""
    return getattr(find_text_decoder(model).config, "max_position_embeddings", None) or float("inf")


def check_layers(model: nn.Module) -> None:
    """Raises UnsupportedModelError for a decoder that is known to see token order through more than position ids and
    masks, so that leaving tokens out would not be the same as masking them."""
    config: Any = find_text_decoder(model).config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError("model: needs a decoder-only language model, got an encoder-decoder")
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if unknown or getattr(config, "alibi", False):
        raise UnsupportedModelError(
            "model: needs layers that see token order only through position ids and masks, "
            f"got {unknown or ['alibi']} in {type(find_text_decoder(model)).__name__}"
        )


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes token ids; Accelerate keeps offloaded weights elsewhere until they are needed."""
    embeddings = model.get_input_embeddings()
    device = embeddings.weight.device
    return torch.device(embeddings._hf_hook.execution_device) if device.type == "meta" else device


def image_token_id(model: nn.Module) -> int:
    """The placeholder id that stands once for each image feature vector."""
    for name in _IMAGE_TOKEN_ATTRIBUTES:
        value = getattr(model.config, name, None)
        if isinstance(value, int):
            return value
    raise UnsupportedModelError(
        f"model: needs image tokens in its decoder (config.image_token_id), {type(model.config).__name__} has none"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, in the model's own precision, without compiled calls, which would be traced anew for shape after
    shape; and afterwards exactly what was."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    training = [module for module in model.modules() if module.training]
    compiled = {module: call for module in model.modules() if (call := module._compiled_call_impl) is not None}
    model.eval()
    try:
        for module in compiled:
            module._compiled_call_impl = None
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True
        for module, call in compiled.items():
            module._compiled_call_impl = call
