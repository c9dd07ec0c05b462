"""The choice of trained parameters: adapters on the text decoder or the whole decoder, and the projector before it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mmbdhs.training.config import TrainConfig
from mmbdhs.vlm import VLM

_LOG = logging.getLogger("mmbdhs")

PROJECTOR = re.compile(r"projector|connector|merger|aligner|mm_proj|mlp1|modality_projection")


def make_trainable(model: Any, config: TrainConfig) -> nn.Module:
    """Enable gradients and training mode for what `config` trains, and log what that is.

    All else, above all the vision tower, is frozen and in evaluation mode. A PEFT model is trained as it is.

    Returns the model, with new adapters around it if `config` asks for them. Raises ValueError for new adapters on a
    model that has some, and for a projector's learning rate where no projector is found.
    """
    if hasattr(model, "peft_config"):
        if config.lora_r not in (0, TrainConfig.lora_r):
            raise ValueError(
                f"lora_r: needs 0 or the default for a model with adapters of its own, got {config.lora_r}"
            )
    elif config.lora_r:
        model = _with_adapters(model, config)
    else:
        _unfreeze(model, config)
    if config.gradient_checkpointing:
        VLM.of(model).model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = trained_parameters(model).values()
    if not trained:
        raise ValueError("model: needs parameters that require gradients, got none")
    count = sum(parameter.numel() for parameter in trained)
    _LOG.info("training %s parameters in %s", f"{count:,}", ", ".join(trained_modules(model)))
    _train_in_float32(model)
    _set_train_mode(model)
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_modules(model: nn.Module) -> list[str]:
    """The names of the modules that hold trained parameters: text decoder, output head, projectors, and others at the
    first two levels of the model."""
    base = VLM.of(model).model
    main = (VLM.of(base).decoder, base.get_output_embeddings(), *_projectors(base).values())
    parts = [name for name, module in base.named_modules() if any(module is part for part in main)]
    found: dict[str, None] = {}
    for name in trained_parameters(base):
        outer = ".".join(name.split(".")[:-1][:2])
        found[next((part for part in parts if name.startswith(f"{part}.")), outer)] = None
    return list(found)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: the projector with its learning rate, and all other trained parameters."""
    in_projector = {
        id(parameter) for module in _projectors(VLM.of(model).model).values() for parameter in module.parameters()
    }
    trained = trained_parameters(model).values()
    rate = config.learning_rate if config.projector_learning_rate is None else config.projector_learning_rate
    rest = {"params": [p for p in trained if id(p) not in in_projector], "lr": config.learning_rate}
    projector = {"params": [p for p in trained if id(p) in in_projector], "lr": rate}
    return [group for group in (rest, projector) if group["params"]]


def _with_adapters(model: Any, config: TrainConfig) -> nn.Module:
    """Add LoRA to the linear layers of the text decoder. Their paths start with the decoder's, because names such as
    q_proj occur in the vision tower too."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora_r: needs the extra 'train': pip install 'mmbdhs[train]'") from error
    decoder = VLM.of(model).decoder
    (decoder_name,) = (name for name, module in model.named_modules() if module is decoder)
    layers = {name.rsplit(".")[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    projectors = list(_required_projectors(model)) if config.projector_learning_rate is not None else None
    alpha: Any = 2 * config.lora_r if config.lora_alpha is None else config.lora_alpha
    settings = LoraConfig(
        r=config.lora_r,
        lora_alpha=alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf"{re.escape(decoder_name)}\..*\.({'|'.join(sorted(layers))})",
        modules_to_save=projectors,
    )
    torch.manual_seed(config.seed)
    return get_peft_model(model, settings)


def _unfreeze(model: Any, config: TrainConfig) -> None:
    """Enable gradients for the text decoder, the output head and any projector, and for nothing else."""
    model.requires_grad_(False)
    projectors = _projectors(model) if config.projector_learning_rate is None else _required_projectors(model)
    if not projectors:
        name = type(model).__name__
        _LOG.warning("no projector is trained: %s has no module named like %s", name, PROJECTOR.pattern)
    for module in (VLM.of(model).decoder, model.get_output_embeddings(), *projectors.values()):
        module.requires_grad_(True)


def _train_in_float32(model: nn.Module) -> None:
    """Turn trained parameters of 16 bits into float32: steps of 2e-6 would be lost to their rounding.

    A projector, which is between parts that stay as they are, goes on in the old precision, under autocast. The text
    decoder takes what it is given, and runs under the run's own autocast.
    """
    base = VLM.of(model).model
    takes_all = set(VLM.of(base).decoder.modules()) | {base.get_output_embeddings()}
    for module in _wholly_trained(model):
        dtypes = {parameter.dtype for parameter in module.parameters()} & {torch.bfloat16, torch.float16}
        if dtypes and module not in takes_all:
            module.forward = partial(_under_autocast, module.forward, dtypes.pop())
        for parameter in module.parameters():
            parameter.data = parameter.data.float()
    if any(parameter.dtype != torch.float32 for parameter in trained_parameters(model).values()):
        _LOG.warning("some trained parameters are not float32: steps smaller than their rounding are lost")


def _wholly_trained(model: nn.Module) -> list[nn.Module]:
    """The outermost modules all of whose parameters are trained."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        inside = any(name.startswith(f"{outer}.") for outer in found)
        is_container = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if parameters and not inside and not is_container and all(p.requires_grad for p in parameters):
            found[name] = module
    return list(found.values())


def _under_autocast(forward: Callable[..., Any], dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    device = next((tensor.device.type for tensor in tensors), "cpu")
    with torch.autocast(device, dtype):
        return forward(*args, **kwargs)


def _required_projectors(model: nn.Module) -> dict[str, nn.Module]:
    if not (found := _projectors(model)):
        raise ValueError(
            f"projector_learning_rate: needs a module named like {PROJECTOR.pattern}, {type(model).__name__} has none"
        )
    return found


def _projectors(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules outside of the text decoder that have the name of a projector, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in _modules_outside(model, VLM.of(model).decoder):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and PROJECTOR.search(name) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            found[name] = module
    return found


def _modules_outside(model: nn.Module, decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inner = set(decoder.modules())
    return ((name, module) for name, module in model.named_modules() if module not in inner)


def _set_train_mode(model: nn.Module) -> None:
    """Put the model in training mode and fully frozen modules in evaluation mode: no dropout, no batch-norm updates."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
