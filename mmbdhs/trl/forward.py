"""The forward pass of a model over packed rows, in the form in which TRL's trainer expects it."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from mmbdhs.logprobs import scored_tokens
from mmbdhs.vlm import VLM

PACKED_PROMPTS = "packed_prompts"  # the name under which a batch carries the processed prompts to the model


@dataclass
class Passes:
    """How many packed forward passes the models have made."""

    count: int = 0


def add_packed_forward(model: nn.Module, passes: Passes) -> None:
    """Let the model compute packed rows where a batch brings its prompts. The policy's wrappers see one forward, as
    they do with TRL."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        prompts = kwargs.pop(PACKED_PROMPTS, None)
        if prompts is None:
            return original(*args, **kwargs)
        passes.count += 1
        return _packed_output(self, prompts, kwargs["labels"])

    model.forward = types.MethodType(forward, model)


def _packed_output(model: nn.Module, prompts: Sequence[Mapping[str, Any]], labels: Tensor) -> FusedCausalLMOutput:
    """What TRL's forward returns for the padded rows.

    prompts: B of them.
    labels: int64 [2P, L], the tokens of the chosen and then of the rejected responses of P pairs; -100 elsewhere. P is
        a multiple of B, and pairs with the same remainder by B belong to one prompt and one chosen response.
    """
    vlm = VLM.of(model)
    mask, count = labels != -100, len(prompts)
    texts = [row[own] for row, own in zip(labels, mask, strict=True)]
    others = texts[len(texts) // 2 :]
    groups = [[texts[number], *others[number::count]] for number in range(count)]
    inputs = [{name: _cast(vlm, value) for name, value in prompt.items()} for prompt in prompts]
    found, statistics = scored_tokens(model, inputs, groups)
    lengths = [len(text) for group in groups for text in group]
    size = len(groups[0])

    def placed(values: Sequence[Tensor]) -> Tensor:
        """The values of the tokens of every response in the places of the padded rows."""
        columns = [list(values[column::size]) for column in range(size)]
        flat = torch.cat([*(columns[0] * (size - 1)), *(one for column in columns[1:] for one in column)])
        return flat.new_zeros(mask[:, 1:].shape).masked_scatter(mask[:, 1:], flat)

    log_probs = placed([logps for group in found for logps in group])
    more = {name: placed(values.split(lengths)) for name, values in statistics._asdict().items()}
    loss = -log_probs.sum() / mask.sum().clamp(min=1)
    return FusedCausalLMOutput(loss=loss, log_probs=log_probs, label_mask=mask[:, 1:], **more)


def _cast(vlm: VLM, value: Any) -> Any:
    is_pixels = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(vlm.dtype) if is_pixels else value
