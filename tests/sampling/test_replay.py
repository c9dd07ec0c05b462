"""Every greedy token is the arg-max of a plain masked forward of the whole model."""

from __future__ import annotations

import re
from copy import copy
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import assert_replays, masked_logits, picture, prompt_inputs

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample, miniature
from mmbdhs.decoding.token_sampling import vision_token_ids
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.vlm import VLM

PAIRS = [
    ("Describe the image.", "The image shows a red car, e.g. a van. A dog sits next to it. It costs 3.5 dollars!"),
    ("Is there a cat?", "No, there is a cat on the table. Yes. The tree is green."),
    ("What is it?", "Dog"),
    ("Is it red?", "No"),
    ("Is the sky blue?", "yes."),
    ("Is it one?", "<think>\nIs it No. 7? No.\n</think>\n\n<b>No</b>, 2 dogs."),
]
IMAGES = [
    [picture(0)],
    [picture(1, 40, 70)],
    [picture(2, 48, 48)],
    [picture(3), picture(4, 33, 90)],
    [picture(5)],
    [picture(6)],
]
LIMIT = 10
FAMILIES = ["llava", "llava_llama", "llava_next", "qwen2_5_vl", "qwen3_vl"]


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


def sample_on_both_paths(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> list[BDHSSample]:
    """What the native attention and SDPA agree on."""
    results = []
    for path in ("native", "sdpa"):
        monkeypatch.setenv("MMBDHS_ATTENTION", path)
        results.append(bdhs_sample(*arguments, similarity=unlike))
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_replay(family: str, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = getattr(tiny_models, family)()
    prompts, references = zip(*PAIRS, strict=True)
    config = BDHSConfig(mask_threshold=threshold, temperature=0, max_sentence_tokens=LIMIT, seed=3)
    samples = sample_on_both_paths(monkeypatch, model, processor, IMAGES, prompts, references, config)
    assert {splice.swapped for sample in samples for splice in sample.sentences} == {True, False}
    for sample, images, prompt, reference in zip(samples, IMAGES, prompts, references, strict=True):
        assert sample.guided and sample.iterations == 1
        assert "".join(splice.reference for splice in sample.sentences) == reference
        assert_replays(model, processor, images, prompt, sample, LIMIT)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
def test_greedy_completions_of_the_miniature_replay(threshold: float) -> None:
    """A trained model, which ends its sentences."""
    model, processor = miniature.load()
    scenes = [make_scene("balanced", index) for index in range(3)]
    images = [render(scene) for scene in scenes]
    prompts = [CAPTION_PROMPT, CAPTION_PROMPT, "Is there a dog in the image?"]
    references = [caption(scenes[0]), caption(scenes[1]), "No, there is no dog in the image."]
    config = BDHSConfig(mask_threshold=threshold, temperature=0, max_sentence_tokens=20)
    samples = bdhs_sample(model, processor, images, prompts, references, config, similarity=unlike)
    for sample, image, prompt in zip(samples, images, prompts, strict=True):
        assert_replays(model, processor, [image], prompt, sample, 20)
        assert all(len(splice.completion_ids) < 20 for splice in sample.sentences)


@pytest.mark.parametrize("opening", ["", " <think>\\n"])
def test_markup_survives(opening: str) -> None:
    """Also where the generation prompt opens the tag, so that the response's tokens begin after it."""
    model, processor = miniature.load()
    processor = copy(processor)
    processor.chat_template = processor.chat_template.replace("{{ 'ASSISTANT:' }}", f"{{{{ 'ASSISTANT:{opening}' }}}}")
    text = "<think>\nThe image shows a red car. There is a dog.\n</think>\n\nNo<br>\nThere is a red car."
    references, images = [text] * 8, [render(make_scene("balanced", 0))] * 8
    config = BDHSConfig(max_iterations=1, max_sentence_tokens=8)
    samples = bdhs_sample(model, processor, images, ["Is it?"] * 8, references, config, unlike, keys=range(8))
    assert {splice.swapped for sample in samples for splice in sample.sentences} == {True, False}
    for sample in samples:
        assert sample.rejected.startswith("<think>\n")
        assert re.findall(r"<[^>]+>\s*|\n+", sample.rejected) == ["<think>\n", "\n", "</think>\n\n", "<br>\n"]


@pytest.mark.parametrize("family", FAMILIES)
def test_unguided_response_replays(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = getattr(tiny_models, family)()
    config = BDHSConfig(guided=False, temperature=0, max_new_tokens=LIMIT, max_iterations=1, mask_threshold=0.5)
    lists = IMAGES[:1], ["Describe it."], ["A red car."]
    (sample,) = sample_on_both_paths(monkeypatch, model, processor, *lists, config)
    assert sample.sentences == () and not sample.guided
    inputs = prompt_inputs(processor, IMAGES[0], "Describe it.")
    logits = masked_logits(model, inputs, sample.visible_image_tokens, list(sample.response_ids))
    logits[:, vision_token_ids(VLM.of(model), processor.tokenizer)] = -torch.inf
    predicted = logits.argmax(dim=-1).tolist()
    assert predicted[: len(sample.response_ids)] == list(sample.response_ids)
    assert len(sample.response_ids) == LIMIT or predicted[-1] == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_tokens_see_the_same_logits(family: str) -> None:
    """Dropping against masking, to float32 rounding, prompt and response alike."""
    from mmbdhs.sampling.examples import ExampleReader
    from mmbdhs.vlm.prompt_attention import run_decoder

    model, processor = getattr(tiny_models, family)()
    reader = ExampleReader(VLM.of(model), processor)
    images, (prompt, reference) = IMAGES[3], PAIRS[0]
    example = reader.read(0, images, prompt, reference, None)
    encoded = reader.encode([reader.process(example)])[0]
    visible = torch.tensor([1, 4, 7])
    shown = encoded.inputs.keep_visible(visible)
    with torch.no_grad():
        dropped = model.lm_head(run_decoder(VLM.of(model), [shown])[0, -len(example.turn.token_ids) - 1 :])
    inputs = prompt_inputs(processor, images, prompt)
    masked = masked_logits(model, inputs, tuple(visible.tolist()), list(example.turn.token_ids))
    torch.testing.assert_close(dropped, masked, rtol=0, atol=1e-5)
