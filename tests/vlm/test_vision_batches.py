"""The images of several examples through the vision tower at once give what each gives alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.families import BUILDERS, EXACT
from helpers.plain import picture, prompt_inputs
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mmbdhs.logprobs import response_logps
from mmbdhs.vlm import VLM, DecoderInputs, capture_decoder_inputs, vision_batches, vision_outputs
from mmbdhs.vlm.decoder_inputs import ImageRows, TokenRows

# Pixtral puts all images of a call into one sequence, and Emu3 calls a method of its tower.
ONE_BY_ONE = {"mistral3", "pixtral", "emu3"}
TEXTS = ("Describe the image.", "Is there a cat?", "What?")


@pytest.fixture
def llava() -> Iterator[tuple[Any, Any]]:
    model, processor = tiny_models.llava()
    VLM.of(model).forget_checks()
    yield model, processor
    VLM.of(model).forget_checks()


def encoded(processor: Any, *images: Any) -> list[dict[str, Any]]:
    return [prompt_inputs(processor, [image], text) for image, text in zip(images, TEXTS, strict=False)]


def captured(vlm: VLM, inputs: dict[str, Any], vision: Any = None) -> DecoderInputs:
    return capture_decoder_inputs(vlm, inputs, inputs["input_ids"].shape[1], vision)


def numbers(inputs: DecoderInputs) -> list[Tensor]:
    extra = [leaf.rows for leaf in tree_leaves(inputs.extra_kwargs) if isinstance(leaf, (TokenRows, ImageRows))]
    return [inputs.embeds, inputs.positions, inputs.image_positions, *extra]


@pytest.mark.parametrize("family", EXACT)
@torch.no_grad()
def test_a_batch_gives_what_each_example_gives_alone(family: str) -> None:
    model, processor = BUILDERS[family]()
    vlm = VLM.of(model)
    vlm.forget_checks()
    examples = encoded(processor, *map(picture, range(3)))
    outputs = vision_outputs(vlm, examples)
    assert vlm.batches_vision is (family not in ONE_BY_ONE)
    assert sum(output is not None for output in outputs) >= (2 if vlm.batches_vision else 0)
    for inputs, output in zip(examples, outputs, strict=True):
        together, alone = numbers(captured(vlm, inputs, output)), numbers(captured(vlm, inputs))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    if vlm.batches_vision:  # the outputs tell the examples apart
        other = vision_outputs(vlm, examples)[1]
        exchanged, own = numbers(captured(vlm, examples[0], other)), numbers(captured(vlm, examples[0]))
        assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(exchanged, own, strict=True))


SIZES = [(60, 40), (90, 30), (60, 40), (30, 90), (64, 64), (150, 30)]


def mixed(family: str) -> tuple[Any, VLM, list[dict[str, Any]]]:
    """A model, and images of several sizes and, in the last example, two of them."""
    model, processor = BUILDERS[family]()
    VLM.of(model).forget_checks()
    images = [[picture(number, *size)] for number, size in enumerate(SIZES)] + [[picture(7), picture(8)]]
    return model, VLM.of(model), [prompt_inputs(processor, some, "What?") for some in images]


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("known", [False, True])
@torch.no_grad()
def test_images_of_several_sizes_give_what_each_gives_alone(known: bool, family: str) -> None:
    """Before anything is known about the tower, and where it is known to take images of one size together."""
    _, vlm, examples = mixed(family)
    if known:
        vision_outputs(vlm, [examples[0], examples[2]])
    outputs = vision_outputs(vlm, examples)
    assert family in ONE_BY_ONE or sum(output is not None for output in outputs) >= 2
    for inputs, output in zip(examples, outputs, strict=True):
        together, alone = numbers(captured(vlm, inputs, output)), numbers(captured(vlm, inputs))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_tiles_and_patches_of_several_sizes_go_together(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call of the tower, or in one for each size once mixed sizes are known not to go together."""
    _, vlm, examples = mixed(family)
    calls: list[int] = []
    assert all(vision_outputs(vlm, examples)) and vlm.mixes_vision and vlm.batches_vision is None
    own = vision_batches._outputs
    monkeypatch.setattr(vision_batches, "_outputs", lambda vlm, some: (calls.append(len(some)), own(vlm, some))[1])
    assert all(vision_outputs(vlm, examples)) and calls == [7]
    vlm.mixes_vision = False
    vision = [{name: x for name, x in inputs.items() if x.shape != inputs["input_ids"].shape} for inputs in examples]
    shapes = [[x.shape for x in one.values()] for one in vision]
    in_company = [shapes.count(shape) > 1 for shape in shapes]
    assert [output is not None for output in vision_outputs(vlm, examples)] == in_company and any(in_company)


@torch.no_grad()
def test_a_tower_that_mixes_images_of_unlike_sizes_takes_equal_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, vlm, examples = mixed("qwen2_5_vl")
    own = vision_batches._outputs

    def spoiled(vlm: VLM, calls: Any) -> Any:
        shift = float(len({call.args[0].shape for call in calls}) > 1)
        return tree_map(lambda leaf: leaf + shift if isinstance(leaf, Tensor) else leaf, own(vlm, calls))

    monkeypatch.setattr(vision_batches, "_outputs", spoiled)
    with caplog.at_level(logging.INFO, "mmbdhs"):
        outputs = vision_outputs(vlm, examples)
    assert vlm.mixes_vision is False and vlm.batches_vision
    assert "only images of one size are encoded together: Qwen2_5_VL" in caplog.text
    for inputs, output in zip(examples, outputs, strict=True):
        torch.testing.assert_close(
            captured(vlm, inputs, output).embeds, captured(vlm, inputs).embeds, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_gradients_of_mixed_sizes_are_those_of_one_example_at_a_time(family: str) -> None:
    """Through the projector and through the first layer of the tower."""
    model, vlm, prompts = mixed(family)
    responses = [[[5 + n, 6, 7], [8]] for n in range(len(prompts))]
    tower = next(m for m in vlm.model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))).weight
    projector = next(p for name, p in model.named_parameters() if "projector" in name or "merger" in name)

    def gradients() -> Any:
        return torch.autograd.grad(response_logps(model, prompts, responses).sums.sum(), [tower, projector])

    together = gradients()
    assert vlm.mixes_vision
    vlm.batches_vision = vlm.mixes_vision = False
    for found, expected in zip(together, gradients(), strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


@torch.no_grad()
def test_a_batch_is_bounded(llava: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = llava
    examples = encoded(processor, *map(picture, range(3)))
    assert all(vision_outputs(VLM.of(model), examples))
    monkeypatch.setattr(vision_batches, "_MOST_NUMBERS", 2 * examples[0]["pixel_values"].numel())
    assert [output is not None for output in vision_outputs(VLM.of(model), examples)] == [True, True, False]
    assert vision_outputs(VLM.of(model), examples[:1]) == [None]


@torch.no_grad()
def test_a_tower_that_mixes_examples_runs_for_one_at_a_time(
    llava: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = llava
    first = next(module for module in model.model.vision_tower.modules() if isinstance(module, nn.Conv2d))
    handle = first.register_forward_hook(lambda module, args, output: output - output.mean(dim=0))
    examples = encoded(processor, *map(picture, range(3)))
    with caplog.at_level(logging.INFO, "mmbdhs"):
        first_time, second_time = (vision_outputs(VLM.of(model), examples) for _ in range(2))
    alone = [captured(VLM.of(model), inputs).embeds for inputs in examples]
    together = [captured(VLM.of(model), *pair).embeds for pair in zip(examples, first_time, strict=True)]
    assert second_time == [None] * 3 and all(map(torch.equal, together, alone))
    handle.remove()
    said = "images are encoded for one example at a time: LlavaForConditionalGeneration encodes several"
    assert caplog.text.count(said) == 1


@torch.no_grad()
def test_equal_images_and_nan_tell_nothing(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    spoiled = encoded(processor, picture(0), picture(1))
    spoiled[1]["pixel_values"] = spoiled[1]["pixel_values"] * torch.nan
    for examples in (encoded(processor, picture(0), picture(0)), spoiled):
        vision_outputs(VLM.of(model), examples)
        assert VLM.of(model).batches_vision is None
    assert all(vision_outputs(VLM.of(model), encoded(processor, picture(0), picture(1))))
    outputs = vision_outputs(VLM.of(model), spoiled)
    assert captured(VLM.of(model), spoiled[0], outputs[0]).embeds.isfinite().all()


def test_gradients_are_those_of_one_example_at_a_time(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    prompts = encoded(processor, *map(picture, range(3)))
    responses = [[[5, 6, 7], [8]], [[9, 10], [14]], [[11], [12, 13]]]
    weight = next(module for module in model.model.vision_tower.modules() if isinstance(module, nn.Conv2d)).weight

    def gradient() -> Tensor:
        return torch.autograd.grad(response_logps(model, prompts, responses).sums.sum(), weight)[0]

    together = gradient()
    assert VLM.of(model).batches_vision
    VLM.of(model).batches_vision = False
    torch.testing.assert_close(together, gradient(), rtol=1e-4, atol=1e-5)
