"""What a model keeps between two calls: its captured steps, and the memory that they read and write.

Only steps with CUDA graphs are kept. The model owns them, so deleting the model frees them; `release` does so earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmbdhs.decoding.autotune import override
from mmbdhs.decoding.engine import Chooser, DecodingEngine
from mmbdhs.decoding.steps import EagerSteps, GraphSteps
from mmbdhs.vlm import VLM

# Steps run in evaluation mode and without torch.compile, so these do not matter.
_IGNORED = {"training", "_compiled_call_impl"}


@dataclass(frozen=True)
class Borrowed:
    """Steps, and what must be as it was for the captured ones to be right; None for steps that are not kept."""

    steps: EagerSteps | GraphSteps
    conditions: tuple[Any, ...] | None


def borrow_steps(vlm: VLM, choose: Chooser, max_branches: int, usual_tokens: int) -> Borrowed:
    """The steps that the model keeps, if they are the same as new ones would be; or else new ones.

    Until they are given back nobody else gets them.
    """
    if not takes_graphs(vlm.device):
        return Borrowed(EagerSteps(DecodingEngine(vlm, choose)), None)
    conditions = _conditions(vlm, choose, max_branches, usual_tokens)
    kept, vlm.kept_steps = vlm.kept_steps, None
    if kept is not None and kept.conditions == conditions:
        return kept
    return Borrowed(GraphSteps(DecodingEngine(vlm, choose), max_branches, usual_tokens), conditions)


def takes_graphs(device: torch.device) -> bool:
    """Whether steps are captured on the device."""
    return device.type == "cuda"


def give_back(vlm: VLM, borrowed: Borrowed) -> None:
    """Let the model keep steps that nobody uses any more."""
    if borrowed.conditions is not None:
        borrowed.steps.engine.clear()
        vlm.kept_steps = borrowed


def release(model: nn.Module) -> None:
    """Free the GPU memory that sampling keeps with a model for its next call."""
    VLM.of(model).kept_steps = None


def _conditions(vlm: VLM, *settings: Any) -> tuple[Any, ...]:
    """Whatever a captured step depends on, apart from the numbers in the model's tensors."""
    model = vlm.model
    tensors = tuple((x.data_ptr(), x.dtype, x.shape, x.stride()) for x in (*model.parameters(), *model.buffers()))
    modules = tuple(
        _content({name: value for name, value in vars(module).items() if name not in _IGNORED})
        for module in model.modules()
    )
    return settings, override(), vlm.device, tensors, modules


def _content(value: Any) -> Any:
    """Plain settings as they are, containers by what they hold, all else by its identity."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, dict):
        return tuple((name, _content(one)) for name, one in value.items())
    return tuple(map(_content, value)) if isinstance(value, (list, tuple)) else id(value)
