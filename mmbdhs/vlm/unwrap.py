"""The `transformers` model inside whatever it has been wrapped in."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from mmbdhs.checks import kind_of
from mmbdhs.errors import UnsupportedModelError


def unwrap(model: Any) -> PreTrainedModel:
    """Take off torch.compile, (Distributed)DataParallel and PEFT.

    Raises TypeError for anything but a module, and UnsupportedModelError for wrappers without which the model does not
    work.
    """
    _require_module(model)
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise _sharded("inside FullyShardedDataParallel.summon_full_params of the wrapper")
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


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        swapped = ". Are model and processor swapped?" if hasattr(model, "tokenizer") else ""
        raise TypeError(f"model: needs a loaded model of transformers, got {kind_of(model)}{swapped}")


def require_whole_parameters(model: PreTrainedModel) -> None:
    """Raises UnsupportedModelError for a model sharded by FSDP2, which every process would have to run."""
    embeddings = next(model.get_input_embeddings().parameters(), None)
    if isinstance(embeddings, DTensor) and any(isinstance(module, FSDPModule) for module in model.modules()):
        raise _sharded("after unshard() and set_reshard_after_forward(False) of each sharded module")


def _sharded(remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"model: needs whole parameters, got a model sharded by FSDP; use it {remedy}")
