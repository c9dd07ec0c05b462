"""Scalar heads after the text decoder: the reward of a response, or the value of a place in it.

A head is a linear layer without bias and a child of the model, so that optimiser, checkpoints and processes take it as
they take any other parameter. It is saved in a file of its own next to the model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmbdhs.data import key_address
from mmbdhs.vlm import VLM

REWARD_HEAD, VALUE_HEAD = "reward_head", "value_head"


def add_head(model: nn.Module, name: str, seed: int) -> None:
    """Give the model a head of this name, float32, unless it has one, and let it be trained.

    name: REWARD_HEAD, whose weights are drawn from N(0, 1/(hidden + 1)) as in arXiv 2009.01325, or VALUE_HEAD, whose
        weights are 0.
    seed: of the draw.
    """
    vlm = VLM.of(model)
    if hasattr(vlm.model, name):
        vlm.model.get_submodule(name).requires_grad_(True)
        return
    output: Any = vlm.model.get_output_embeddings()
    hidden = output.weight.shape[1]
    head = nn.Linear(hidden, 1, bias=False, dtype=torch.float32)
    weight = torch.zeros(1, hidden)
    if name == REWARD_HEAD:
        generator = torch.Generator().manual_seed(key_address(f"{name} {seed}"))
        weight = torch.randn(1, hidden, generator=generator) / math.sqrt(hidden + 1)
    head.weight = nn.Parameter(weight)
    vlm.model.add_module(name, head.to(vlm.device))


def apply_head(model: nn.Module, name: str, states: Tensor) -> Tensor:
    """The head's number for each hidden state, [...], float32 or wider also under autocast.

    states: [..., hidden].
    """
    weight: Any = VLM.of(model).model.get_submodule(name).weight
    wide = torch.promote_types(states.dtype, torch.float32)
    with torch.autocast(states.device.type, enabled=False):
        return F.linear(states.to(wide), weight.to(wide)).squeeze(-1)


def split_head(weights: dict[str, Tensor], name: str) -> tuple[dict[str, Tensor], Tensor]:
    """The model's own weights, and those of its head."""
    (of_head,) = (key for key in weights if key.endswith(f"{name}.weight"))
    return {key: value for key, value in weights.items() if key != of_head}, weights[of_head]


def save_head(folder: Path, name: str, weight: Tensor) -> None:
    """Write the head's weights into the folder of its model."""
    save_file({"weight": weight.detach().cpu().contiguous()}, folder / f"{name}.safetensors")


def load_head(model: nn.Module, name: str, folder: Path) -> None:
    """Give the model the head that is saved in the folder. Raises ValueError where there is none that fits."""
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise ValueError(f"folder: needs {file.name}, as the objective of reward models writes it, got {folder}")
    add_head(model, name, seed=0)
    head = VLM.of(model).model.get_submodule(name)
    weights = load_file(file)
    if [tuple(value.shape) for value in weights.values()] != [tuple(value.shape) for value in head.parameters()]:
        raise ValueError(f"folder: needs a head for the hidden size of {VLM.of(model).name}, got {file}")
    head.load_state_dict(weights)
