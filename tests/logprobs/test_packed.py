"""Packed rows against rows of their own: log-probabilities, loss, and every parameter's gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.families import BUILDERS
from helpers.plain import picture, prompt_inputs
from torch import nn

from mmbdhs import UnsupportedModelError, miniature
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.padded import separate_logps
from mmbdhs.logprobs.responses import ResponseLogps
from mmbdhs.losses import dpo_loss
from mmbdhs.vlm.text_decoder import find_text_decoder

IMAGES = [[picture(0)], [picture(1, 40, 70), picture(2, 48, 48)]]
PROMPTS = ["Describe the image.", "Is there a cat?"]
FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"]
OTHERS = ["llava_mistral_sliding", "gemma3", "gemma4", "paligemma", "paligemma2", "llama4", "aria", "granite4_vision"]


def case(family: str, lengths: list[list[int]]) -> tuple[Any, list[dict[str, Any]], list[list[list[int]]]]:
    model, processor = miniature.load() if family == "miniature" else BUILDERS[family]()
    generator = torch.Generator().manual_seed(0)
    prompts = [
        prompt_inputs(processor, images[: len(lengths)], text) for images, text in zip(IMAGES, PROMPTS, strict=True)
    ]
    draw = [[torch.randint(10, 200, (n,), generator=generator).tolist() for n in row] for row in lengths]
    return copy.deepcopy(model), prompts[: len(lengths)], draw


def gradients(model: Any, found: ResponseLogps) -> dict[str, torch.Tensor]:
    """Of a loss in which every token has a weight of its own."""
    model.zero_grad()
    weights = torch.linspace(-1, 1.5, found.tokens.numel()).view_as(found.tokens)
    (found.tokens * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: ResponseLogps, plain: ResponseLogps, model: Any) -> None:
    torch.testing.assert_close(found.tokens, plain.tokens, rtol=0, atol=2e-5)
    assert torch.equal(found.mask, plain.mask)
    assert_same_gradients(gradients(model, found), gradients(model, plain))


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of their norms, or of a hundredth of the largest, below which they are sums of larger parts."""
    assert expected.keys() == found.keys()
    floor = 0.01 * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * max(float(gradient.norm()), floor), name


@pytest.mark.parametrize(
    "lengths", [[[5]], [[7, 3]], [[4, 0, 9], [1, 6, 2]], [[0, 0], [3, 2]], [[3, 1, 4, 1, 5, 9, 2, 6]]], ids=str
)
@pytest.mark.parametrize("family", [*FAMILIES, "miniature"])
def test_packed_equals_separate(family: str, lengths: list[list[int]]) -> None:
    model, prompts, responses = case(family, lengths)
    assert_same(response_logps(model, prompts, responses), separate_logps(model, prompts, responses), model)


@pytest.mark.parametrize("family", OTHERS)
def test_packed_equals_separate_in_other_families(family: str) -> None:
    model, prompts, responses = case(family, [[7, 3], [2, 5]])
    assert_same(response_logps(model, prompts, responses), separate_logps(model, prompts, responses), model)


@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma2", "llama4"])
def test_flex_attention_equals_separate(family: str, flex_twin: None) -> None:
    model, prompts, responses = case(family, [[7, 0, 3], [2, 5, 1]])
    assert_same(response_logps(model, prompts, responses), separate_logps(model, prompts, responses), model)


def test_the_image_is_encoded_once_and_the_prompt_runs_once() -> None:
    model, prompts, responses = case("llava", [[5, 6, 7]])
    response_logps(model, prompts, responses)  # probes the model
    images, lengths = [], []
    model.model.vision_tower.register_forward_pre_hook(lambda *_: images.append(1))
    find_text_decoder(model).layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[:2]))
    response_logps(model, prompts, responses)
    assert len(images) == 1 and lengths == [(1, prompts[0]["input_ids"].shape[1] + 18)]


def test_the_last_layer_runs_where_it_is_read() -> None:
    """Behind the keys and values, at the prompt's last token and the responses, in the longest row's number."""
    model, prompts, responses = case("llava", [[5, 6, 7], [1, 2, 3]])
    response_logps(model, prompts, responses)  # probes the model
    tokens, outputs = [], []
    layers = find_text_decoder(model).layers
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[:2]))
    layers[-1].register_forward_hook(lambda module, args, output: outputs.append(output))
    response_logps(model, prompts, responses)
    length = max(
        len(inputs["input_ids"][0]) + sum(map(len, row)) for inputs, row in zip(prompts, responses, strict=True)
    )
    assert tokens == [*[(2, length)] * (len(layers) - 1), (2, 19)]
    assert outputs[0].shape[:2] == (2, length) and (outputs[0].count_nonzero(dim=2) > 0).sum() == 2 * 19


def test_decoders_that_go_on_behind_their_last_layer_are_refused() -> None:
    model, prompts, responses = case("llava", [[4, 3]])
    decoder = find_text_decoder(model)
    response_logps(model, prompts, responses)  # probes the model
    decoder.layers.append(decoder.layers[0])  # which so runs first, too
    decoder.config.num_hidden_layers += 1
    with pytest.raises(UnsupportedModelError, match="the last of its layers once and last, got LlamaModel"):
        response_logps(model, prompts, responses)


def test_decoders_without_a_list_of_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, responses = case("llava", [[4, 3]])
    decoder = find_text_decoder(model)
    response_logps(model, prompts, responses)  # probes the model
    monkeypatch.setattr(decoder, "layers", nn.Sequential(*decoder.layers))
    with pytest.raises(UnsupportedModelError, match="its layers in a list `layers`, got LlamaModel without one"):
        response_logps(model, prompts, responses)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("flex", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_checkpointed_layers_attend_the_same_when_they_run_again(
    family: str, flex: bool, reentrant: bool, request: pytest.FixtureRequest
) -> None:
    if flex:
        request.getfixturevalue("flex_twin")
    model, prompts, responses = case(family, [[4, 7], [3, 2]])
    plain = separate_logps(model, prompts, responses)
    checkpointed = copy.deepcopy(model).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    layers = find_text_decoder(checkpointed).layers
    assert all(layer.gradient_checkpointing for layer in layers)
    response_logps(checkpointed, prompts, responses)  # probes the model
    tokens = []
    layers[-1].mlp.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    found = response_logps(checkpointed, prompts, responses)
    assert_same_gradients(gradients(checkpointed, found), gradients(model, plain))
    assert tokens == [12, 12]  # forward, and backward


def test_adapters_learn_what_they_would_in_rows_of_their_own() -> None:
    peft = pytest.importorskip("peft")
    model, prompts, responses = case("qwen2_5_vl", [[4, 7], [3, 2]])
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    assert_same(response_logps(adapted, prompts, responses), separate_logps(adapted, prompts, responses), adapted)
    with adapted.disable_adapter(), torch.no_grad():
        before = response_logps(adapted, prompts, responses).tokens
    assert (before - response_logps(adapted, prompts, responses).tokens).abs().max() > 0.01


def test_compiled_models_keep_working() -> None:
    model, prompts, responses = case("llava", [[4, 7]])
    compiled = torch.compile(model, backend="eager")
    assert_same(response_logps(compiled, prompts, responses), separate_logps(model, prompts, responses), model)


def test_autocast_and_half_precision_stay_within_their_noise() -> None:
    """Packed is as far from float32 as rows of their own are, give or take half."""
    model, prompts, responses = case("llava_next", [[30, 40], [20, 10]])
    with torch.no_grad():
        truth = separate_logps(model, prompts, responses).tokens
        with torch.autocast("cpu", torch.bfloat16):
            automatic = [way(model, prompts, responses).tokens for way in (response_logps, separate_logps)]
        half = copy.deepcopy(model).to(torch.bfloat16)
        prompts = [{n: x.to(torch.bfloat16) if x.is_floating_point() else x for n, x in p.items()} for p in prompts]
        rounded = [way(half, prompts, responses).tokens for way in (response_logps, separate_logps)]
    for packed, separate in (automatic, rounded):
        assert packed.dtype == torch.float32
        assert 0 < (packed - truth).norm() < 1.5 * (separate - truth).norm()


def test_temperature_divides_the_logits() -> None:
    model, prompts, responses = case("llava", [[4, 7]])
    settings = {"temperature": 0.7}
    found, plain = (way(model, prompts, responses, **settings) for way in (response_logps, separate_logps))
    assert_same(found, plain, model)
    assert not torch.allclose(found.tokens, response_logps(model, prompts, responses).tokens)


@pytest.mark.parametrize("way", [response_logps, separate_logps])
def test_responses_are_cut_at_the_context_only_when_allowed(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, responses = case("llava", [[40, 7]])
    length = prompts[0]["input_ids"].shape[1]
    monkeypatch.setattr(find_text_decoder(model).config, "max_position_embeddings", length + 30)
    with pytest.raises(ValueError, match=rf"responses: needs at most {length + 30} tokens .* got {length} \+ 40"):
        way(model, prompts, responses)
    cut = way(model, prompts, responses, truncate_responses=True)
    assert cut.lengths.tolist() == [[30, 7]]
    torch.testing.assert_close(cut.tokens, way(model, prompts, [[responses[0][0][:30], responses[0][1]]]).tokens)
    monkeypatch.setattr(find_text_decoder(model).config, "max_position_embeddings", length - 1)
    with pytest.raises(ValueError, match="never prompts"):
        way(model, prompts, responses, truncate_responses=True)


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([], r"a list for each of 1 prompt\(s\), .* got lists of \[\]"),
        ([[]], r"got lists of \[0\]"),
        ([[[1]], [[1]]], r"got lists of \[1, 1\]"),
    ],
)
def test_lists_that_do_not_fit(responses: Any, message: str) -> None:
    model, prompts, _ = case("llava", [[4]])
    with pytest.raises(ValueError, match=message):
        response_logps(model, prompts, responses)
    with pytest.raises(ValueError, match="temperature: needs a number above 0, got 0"):
        response_logps(model, prompts, [[[1]]], temperature=0)
    with pytest.raises(ValueError, match=r"prompts: needs input_ids \[1, L\] in each, got \[2, 3\] in prompt 0"):
        response_logps(model, [{"input_ids": torch.ones(2, 3, dtype=torch.int64)}], [[[1]]])


def test_models_that_cannot_share_rows_are_refused_and_run_separately() -> None:
    model, prompts, responses = case("lfm2_vl", [[4, 3]])
    with pytest.raises(UnsupportedModelError, match="'conv'"):
        response_logps(model, prompts, responses)
    assert separate_logps(model, prompts, responses).sums.isfinite().all()


def test_a_preference_step_is_a_few_lines() -> None:
    model, prompts, responses = case("llava", [[6, 4], [3, 5]])
    with torch.no_grad():
        reference = response_logps(model, prompts, responses).sums
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        policy = response_logps(model, prompts, responses).sums
        result = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])
        optimizer.zero_grad()
        result.losses.mean().backward()
        optimizer.step()
    assert (result.chosen_rewards > result.rejected_rewards).all()
