"""Models for which leaving tokens out is not the same are caught before they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture

from mmbdhs import BDHSConfig, UnsupportedModelError, bdhs_sample
from mmbdhs.vlm import VLM
from mmbdhs.vlm.output_head import logits_of
from mmbdhs.vlm.text_decoder import find_text_decoder

CONFIG = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=1)


def sample(model: Any, processor: Any, reference: str = "A red car.") -> list:
    arguments = [picture(0)], ["Describe it."], [reference], CONFIG
    return bdhs_sample(model, processor, *arguments, similarity=lambda a, b: [0.0] * len(a))


@pytest.fixture
def unprobed() -> Iterator[tuple[Any, Any]]:
    model, processor = tiny_models.llava()
    VLM.of(model).forget_checks()
    yield model, processor
    VLM.of(model).forget_checks()


def test_a_decoder_that_mixes_neighbours_is_caught_by_the_probe(unprobed: Any) -> None:
    """A short convolution over the token axis, which no configuration tells of."""
    model, processor = unprobed
    layer = find_text_decoder(model).layers[0].mlp
    handle = layer.register_forward_hook(lambda module, args, output: output + 0.1 * output.roll(1, dims=1))
    with pytest.raises(UnsupportedModelError, match="leaving image tokens out against masking them: by 0"):
        sample(model, processor)
    handle.remove()
    sample(model, processor)


def change_logits(model: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[..., torch.Tensor]) -> None:
    forward = model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = change(output.logits, kwargs.get("input_ids"))
        return output

    monkeypatch.setattr(model, "forward", changed)


@torch.no_grad()
def test_what_a_model_does_to_its_logits_is_done(unprobed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = unprobed
    change_logits(model, monkeypatch, lambda logits, ids: 5 * torch.tanh(logits / 5))
    sample(model, processor)
    hidden = torch.randn(3, 128)
    expected = 5 * torch.tanh(model.lm_head(hidden) / 5)
    torch.testing.assert_close(logits_of(VLM.of(model), hidden), expected, rtol=0, atol=1e-6)
    VLM.of(model).forget_checks()


def test_logits_made_from_more_than_hidden_states_are_caught(unprobed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = unprobed
    change_logits(model, monkeypatch, lambda logits, ids: logits if ids is None else logits + 0.01 * ids[..., None])
    with pytest.raises(UnsupportedModelError, match="decoder and output head against its own forward"):
        sample(model, processor)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_probe_allows_for_rounding(family: str, dtype: torch.dtype) -> None:
    model, processor = getattr(tiny_models, family)()
    model = copy.deepcopy(model).to(dtype)
    assert len(sample(model, processor)) == 1
