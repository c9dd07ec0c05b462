"""Which parameters are trained: adapters on the text decoder or the decoder itself, and the projector before it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mmbdhs.training.config import TrainConfig
from mmbdhs.vlm import VLM

_LOG = logging.getLogger("mmbdhs")

PROJECTOR = re.compile(r"projector|connector|merger|aligner|mm_proj|mlp1|modality_projection")


def make_trainable(model: nn.Module, config: TrainConfig) -> nn.Module:
    """The model, or adapters around it, with gradients for what `config` trains and training mode for the modules that
    hold it; all else, the vision tower above all, is frozen and in evaluation mode. A PEFT model is taken as it is.

    Raises ValueError for adapters upon adapters, and for a projector's learning rate where no projector is found."""
    if hasattr(model, "peft_config"):
        if config.lora_rank:
            raise ValueError(f"lora_rank: needs 0 for a model with adapters of its own, got {config.lora_rank}")
    elif config.lora_rank:
        model = _with_adapters(model, config)
    else:
        _thaw(model, config)
    if config.gradient_checkpointing:
        VLM.of(model).model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = trained_parameters(model).values()
    if not trained:
        raise ValueError("model: needs parameters that require gradients, got none")
    if any(parameter.dtype != torch.float32 for parameter in trained):
        _LOG.warning("some trained parameters are not float32: steps smaller than their rounding are lost")
    _train_mode(model)
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, those with gradients."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: what is trained, and the projector with a learning rate of its own."""
    in_projector = {
        id(parameter) for module in _projectors(VLM.of(model).model).values() for parameter in module.parameters()
    }
    trained = trained_parameters(model).values()
    rate = config.learning_rate if config.projector_learning_rate is None else config.projector_learning_rate
    rest = {"params": [p for p in trained if id(p) not in in_projector], "lr": config.learning_rate}
    projector = {"params": [p for p in trained if id(p) in in_projector], "lr": rate}
    return [group for group in (rest, projector) if group["params"]]


def _with_adapters(model: nn.Module, config: TrainConfig) -> nn.Module:
    """LoRA on the linear layers inside the text decoder; bare names such as q_proj would hit the vision tower too."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora_rank: needs the extra 'train': pip install 'mmbdhs[train]'") from error
    decoder = VLM.of(model).decoder
    (place,) = (name for name, module in model.named_modules() if module is decoder)
    layers = {name.rsplit(".")[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    projectors = list(_projectors_or_error(model)) if config.projector_learning_rate is not None else None
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf"{re.escape(place)}\..*\.({'|'.join(sorted(layers))})",
        modules_to_save=projectors,
    )
    torch.manual_seed(config.seed)
    return get_peft_model(model, settings)


def _thaw(model: nn.Module, config: TrainConfig) -> None:
    model.requires_grad_(False)
    find = _projectors if config.projector_learning_rate is None else _projectors_or_error
    for module in (VLM.of(model).decoder, model.get_output_embeddings(), *find(model).values()):
        module.requires_grad_(True)


def _projectors_or_error(model: nn.Module) -> dict[str, nn.Module]:
    if not (found := _projectors(model)):
        raise ValueError(
            f"projector_learning_rate: needs a module named like {PROJECTOR.pattern}, {type(model).__name__} has none"
        )
    return found


def _projectors(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the outermost modules outside of the text decoder whose name says that they are a projector."""
    found: dict[str, nn.Module] = {}
    for name, module in _outside(model, VLM.of(model).decoder):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and PROJECTOR.search(name) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            found[name] = module
    return found


def _outside(model: nn.Module, decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inner = set(decoder.modules())
    return ((name, module) for name, module in model.named_modules() if module not in inner)


def _train_mode(model: nn.Module) -> None:
    """Modules that hold parameters none of which is trained keep neither dropout nor batch statistics going."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
