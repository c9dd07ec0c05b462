"""The door: what comes out of it, and which models it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture, prompt_inputs
from transformers import LlamaConfig

from mmbdhs import BDHSConfig, ExampleError, UnsupportedModelError, bdhs_sample
from mmbdhs.vlm import VLM
from mmbdhs.vlm.decoder_inputs import capture_decoder_inputs
from mmbdhs.vlm.mask_rules import CAUSAL, rule_mask, rule_of, table_rule
from mmbdhs.vlm.prompt_attention import run_decoder
from mmbdhs.vlm.text_decoder import find_text_decoder

CONFIG = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=1)


def sample(model: Any, processor: Any, reference: str = "A red car.") -> list:
    arguments = [picture(0)], ["Describe it."], [reference], CONFIG
    return bdhs_sample(model, processor, *arguments, similarity=lambda a, b: [0.0] * len(a))


@pytest.mark.parametrize(("family", "rows"), [("llava", 1), ("llava_next", 1), ("qwen2_5_vl", 3), ("qwen3_vl", 3)])
@torch.no_grad()
def test_dropping_keeps_positions(family: str, rows: int) -> None:
    model, processor = getattr(tiny_models, family)()
    inputs = prompt_inputs(processor, [picture(0), picture(1, 90, 30)], "Describe it.")
    whole = capture_decoder_inputs(VLM.of(model), inputs, inputs["input_ids"].shape[1])
    ids = inputs["input_ids"][0]
    image = (ids == model.config.image_token_id).nonzero().flatten()
    assert torch.equal(whole.image_positions, image) and len(whole) == len(ids)
    assert whole.positions.shape[0] in (rows, rows + 1)
    visible = torch.tensor([0, 3, len(image) - 1])
    shown = whole.keep_visible(visible)
    keep = torch.tensor([i for i in range(len(ids)) if i not in image or i in image[visible]])
    assert torch.equal(shown.embeds, whole.embeds[keep])
    assert torch.equal(shown.positions, whole.positions[:, keep])
    assert torch.equal(keep[shown.image_positions], image[visible])


def test_the_images_are_encoded_once_per_example() -> None:
    """Two examples in one batch, through four iterations."""
    model, processor = tiny_models.llava()
    config = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=4)
    lists = [picture(0), picture(1)], ["Describe it."] * 2, ["A red car. A dog."] * 2

    def run() -> None:
        bdhs_sample(model, processor, *lists, config, similarity=lambda a, b: [1.0] * len(a))

    run()  # probes the model
    batches = []
    first = next(module for module in model.model.vision_tower.modules() if isinstance(module, torch.nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    run()
    handle.remove()
    assert batches == [2]


def test_hidden_tokens_never_enter_the_decoder() -> None:
    model, processor = tiny_models.llava()
    sample(model, processor)  # probes the model
    lengths = []
    handle = find_text_decoder(model).register_forward_pre_hook(
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
        ({"is_encoder_decoder": True}, "an encoder-decoder"),
    ],
)
def test_models_that_cannot_drop_are_refused(change: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    for name, value in change.items():
        monkeypatch.setattr(find_text_decoder(model).config, name, value, raising=False)
    with pytest.raises(UnsupportedModelError, match=message):
        sample(model, processor)


def test_sequences_beyond_the_context_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(find_text_decoder(model).config, "max_position_embeddings", 66)
    sample(model, processor)
    with pytest.raises(ExampleError, match="at most 66 tokens"):
        sample(model, processor, "A red car. " * 5)


def test_models_without_image_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(model, "config", LlamaConfig())
    with pytest.raises(UnsupportedModelError, match="needs image tokens in its decoder"):
        sample(model, processor)


def with_mask(model: Any, monkeypatch: pytest.MonkeyPatch, make: Callable[[int], Any]) -> None:
    """Let the model prepare a mask for its decoder."""
    language_model = find_text_decoder(model)
    call = type(language_model).__call__

    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs["attention_mask"], torch.Tensor) and kwargs["attention_mask"].ndim == 2:
            kwargs["attention_mask"] = make(kwargs["inputs_embeds"].shape[1])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(language_model), "__call__", prepared)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@torch.no_grad()
def test_a_mask_in_four_dimensions_is_cut_like_the_rest(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A band of 20 tokens, written out by the model."""
    model, processor = tiny_models.llava()

    def band(length: int) -> torch.Tensor:
        seen = torch.ones(1, 1, length, length, dtype=torch.bool).tril().triu(-19)
        return seen if dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(dtype).min)

    inputs = prompt_inputs(processor, [picture(0)], "Describe it.")
    with_mask(model, monkeypatch, band)
    whole = capture_decoder_inputs(VLM.of(model), inputs, inputs["input_ids"].shape[1])
    monkeypatch.undo()
    visible = torch.tensor([2, 30, 35])
    hidden = torch.ones(len(whole), dtype=torch.bool)
    hidden[whole.image_positions[visible]] = False
    hidden &= torch.isin(torch.arange(len(whole)), whole.image_positions)
    mask = band(len(whole)).bool() if dtype == torch.bool else band(len(whole)) == 0
    arguments = {"inputs_embeds": whole.embeds[None], "position_ids": whole.positions}
    expected = find_text_decoder(model)(**arguments, attention_mask=mask & ~hidden)[0]
    found = run_decoder(VLM.of(model), [whole.keep_visible(visible)])[0]
    torch.testing.assert_close(found, expected[0, ~hidden], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda length: torch.zeros(1, 4, length, length), lambda length: torch.rand(1, 1, length, length)]
)
def test_masks_that_weigh_or_differ_by_head_are_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    with_mask(model, monkeypatch, make)
    with pytest.raises(UnsupportedModelError, match="one sequence and all heads that hides or shows"):
        sample(model, processor)


@pytest.mark.parametrize("change", [lambda mask: mask[..., :5], lambda mask: mask * 1.0, lambda mask: mask.float() + 1])
def test_stand_ins_that_were_changed_are_refused(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not the whole of it is no mask."""
    mask = rule_mask(CAUSAL, 1, 7, 7, "cpu")
    assert mask[:, :, :7] is mask is mask.to("meta")
    with pytest.raises(UnsupportedModelError, match="made otherwise"):
        rule_of(change(mask))
    with pytest.raises(UnsupportedModelError, match="hides or shows"):
        table_rule(change(mask).as_subclass(torch.Tensor))


def test_a_model_that_never_calls_its_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(model, "forward", lambda **kwargs: None)
    with pytest.raises(UnsupportedModelError, match="must call its text decoder LlamaModel, it did not"):
        sample(model, processor)


def test_processor_and_model_must_agree_on_the_number_of_image_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(processor, "patch_size", 12)
    with pytest.raises(
        ExampleError, match=r"processor: wrote 16 image tokens, which Llava\w+ could not fill .*tokens: 16"
    ):
        sample(model, processor)


def test_an_image_without_a_placeholder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    monkeypatch.setattr(VLM, "image_token_id", 5)
    with pytest.raises(ExampleError, match=r"image tokens \(id 5, .* wrote 0 among \d+ tokens"):
        sample(model, processor)
