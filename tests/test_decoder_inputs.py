"""The door: what comes out of it, and which models it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
from plain import picture, prompt_inputs
from transformers import LlamaConfig

from mmbdhs import BDHSConfig, ExampleError, UnsupportedModelError, bdhs_sample, probe
from mmbdhs.decoder_inputs import decoder_inputs, text_decoder

CONFIG = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=1)


def sample(model: Any, processor: Any, reference: str = "A red car.") -> list:
    arguments = [picture(0)], ["Describe it."], [reference], CONFIG
    return bdhs_sample(model, processor, *arguments, similarity=lambda a, b: [0.0] * len(a))


@pytest.mark.parametrize(("family", "rows"), [("llava", 1), ("llava_next", 1), ("qwen2_5_vl", 3), ("qwen3_vl", 3)])
@torch.no_grad()
def test_dropping_keeps_positions(family: str, rows: int) -> None:
    model, processor = getattr(tiny_models, family)()
    inputs = prompt_inputs(processor, [picture(0), picture(1, 90, 30)], "Describe it.")
    whole = decoder_inputs(model, inputs)
    ids = inputs["input_ids"][0]
    image = (ids == model.config.image_token_id).nonzero().flatten()
    assert torch.equal(whole.image_positions, image) and len(whole) == len(ids)
    assert whole.positions.shape[0] in (rows, rows + 1)
    visible = torch.tensor([0, 3, len(image) - 1])
    shown = whole.show(visible)
    keep = torch.tensor([i for i in range(len(ids)) if i not in image or i in image[visible]])
    assert torch.equal(shown.embeds, whole.embeds[keep])
    assert torch.equal(shown.positions, whole.positions[:, keep])
    assert torch.equal(keep[shown.image_positions], image[visible])


def test_the_images_are_encoded_once_per_example(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    calls = []
    handle = model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    config = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=4)
    lists = [picture(0), picture(1)], ["Describe it."] * 2, ["A red car. A dog."] * 2
    bdhs_sample(model, processor, *lists, config, similarity=lambda a, b: [1.0] * len(a))
    handle.remove()
    assert len(calls) == 2


def test_hidden_tokens_never_enter_the_decoder() -> None:
    model, processor = tiny_models.llava()
    sample(model, processor)  # probes the model
    lengths = []
    handle = text_decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    (result,) = sample(model, processor)
    handle.remove()
    prompt = prompt_inputs(processor, [picture(0)], "Describe it.")["input_ids"].shape[1]
    at_the_door, prefill, *steps = lengths
    text = at_the_door - 36
    assert prompt <= at_the_door and len(result.visible_image_tokens) < 5
    assert prefill <= text + len(result.visible_image_tokens) and max(steps) <= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, r"token order only.*\['linear_attention'\]"),
        ({"alibi": True}, r"token order only.*\['alibi'\]"),
        ({"_attn_implementation": "flash_attention_2"}, r"set_attn_implementation\('sdpa'\)"),
    ],
)
def test_models_that_cannot_drop_are_refused(change: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    for name, value in change.items():
        monkeypatch.setattr(text_decoder(model).config, name, value, raising=False)
    with pytest.raises(UnsupportedModelError, match=message):
        sample(model, processor)


@pytest.fixture
def unprobed() -> Iterator[tuple[Any, Any]]:
    model, processor = tiny_models.llava()
    probe._SOUND.discard(model)
    yield model, processor
    probe._SOUND.discard(model)


def test_a_decoder_that_mixes_neighbours_is_caught_by_the_probe(unprobed: Any) -> None:
    """A short convolution over the token axis, which no configuration tells of."""
    model, processor = unprobed
    layer = text_decoder(model).layers[0].mlp
    handle = layer.register_forward_hook(lambda module, args, output: output + 0.1 * output.roll(1, dims=1))
    with pytest.raises(UnsupportedModelError, match="leaving image tokens out against masking them: by 0"):
        sample(model, processor)
    handle.remove()
    sample(model, processor)


def test_logits_made_otherwise_are_caught_by_the_probe(unprobed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = unprobed
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(UnsupportedModelError, match="decoder and output head against its own forward"):
        sample(model, processor)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_probe_allows_for_rounding(family: str, dtype: torch.dtype) -> None:
    model, processor = getattr(tiny_models, family)()
    model = copy.deepcopy(model).to(dtype)
    assert len(sample(model, processor)) == 1


def test_sequences_beyond_a_sliding_window_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(text_decoder(model).config, "sliding_window", 70, raising=False)
    sample(model, processor)
    with pytest.raises(ExampleError, match="at most 66 tokens"):
        sample(model, processor, "A red car. " * 5)


def test_models_without_image_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(model, "config", LlamaConfig())
    with pytest.raises(UnsupportedModelError, match="needs image tokens in its decoder"):
        sample(model, processor)


def test_masks_of_the_models_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    forward = text_decoder(model).__class__.__call__

    def with_its_own_mask(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["attention_mask"] = {"full_attention": None}
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(text_decoder(model).__class__, "__call__", with_its_own_mask)
    with pytest.raises(UnsupportedModelError, match="a mask of its own"):
        sample(model, processor)
