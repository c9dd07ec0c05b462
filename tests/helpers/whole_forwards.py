"""Rules of losses as plain loops: whole forwards of one response at a time, and the gradients that follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def perturbed(model: Any, seed: int) -> Any:
    """A model that predicts other tokens than the one it was."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter += 0.2 * parameter.std(unbiased=False) * torch.randn_like(parameter)
    return model


def log_probabilities(model: Any, inputs: dict[str, Any], ids: list[int]) -> Tensor:
    """log p of every token in the place of each token of a response, [R, V], by one forward of the whole model."""
    tokens = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    pixels = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **pixels).logits
    return logits[0, inputs["input_ids"].shape[1] - 1 : -1].float().log_softmax(-1)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-5 * max(scale, 1.0), name
