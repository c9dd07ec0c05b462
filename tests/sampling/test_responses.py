"""Free sampling: against `generate`, the model's own distribution, and Algorithm 1 with everything switched off."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import chi_square, masked_logits, picture, prompt_inputs

from mmbdhs import (
    BDHSConfig,
    BDHSFailure,
    ExampleError,
    SamplingConfig,
    bdhs_sample,
    iter_responses,
    sample_responses,
)
from mmbdhs.decoding import vision_token_ids
from mmbdhs.vlm import VLM

PROMPTS = ["Describe the image.", "Is there a dog?", "What is it?"]
IMAGES = [picture(seed) for seed in range(3)]
CONFIG = SamplingConfig(max_new_tokens=10, seed=5)


def sample(config: SamplingConfig = CONFIG, order: tuple[int, ...] = (0, 1, 2), **settings: Any) -> list:
    images, prompts = ([column[i] for i in order] for column in (IMAGES, PROMPTS))
    return sample_responses(*tiny_models.llava(), images, prompts, config, **settings)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_greedy_responses_are_those_of_generate(family: str) -> None:
    model, processor = getattr(tiny_models, family)()
    found = sample_responses(model, processor, IMAGES, PROMPTS, replace(CONFIG, temperature=0))
    suppressed = vision_token_ids(VLM.of(model), processor.tokenizer)
    for (response,), image, prompt in zip(found, IMAGES, PROMPTS, strict=True):
        inputs = prompt_inputs(processor, [image], prompt)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=10, suppress_tokens=suppressed)
        expected = ids[0, inputs["input_ids"].shape[1] :]
        assert response.response_ids == tuple(i for i in expected.tolist() if i != processor.tokenizer.eos_token_id)
        assert response.text == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_first_tokens_follow_the_model() -> None:
    """1,500 responses to one prompt against the softmax of a plain forward; false alarm 1e-6."""
    model, processor = tiny_models.llava()
    config = SamplingConfig(max_new_tokens=1)
    (found,) = sample_responses(model, processor, IMAGES[:1], PROMPTS[:1], config, num_return_sequences=1500)
    logits = masked_logits(model, prompt_inputs(processor, IMAGES[:1], PROMPTS[0]), tuple(range(36)), [])[0]
    logits[vision_token_ids(VLM.of(model), processor.tokenizer)] = -torch.inf
    ends = processor.tokenizer.eos_token_id
    chi_square(Counter(response.response_ids[0] if response.response_ids else ends for response in found), logits)


def test_later_tokens_follow_the_distribution_of_generate() -> None:
    """The second and third tokens of 2,000 responses, by remainder, against as many of `generate`; false alarm 1e-6."""
    model, processor = tiny_models.llava()
    inputs, count, bins = prompt_inputs(processor, IMAGES[:1], PROMPTS[0]), 2000, 12
    end, suppressed = processor.tokenizer.eos_token_id, vision_token_ids(VLM.of(model), processor.tokenizer)
    settings = {"max_new_tokens": 3, "do_sample": True, "top_k": 0, "suppress_tokens": suppressed}
    torch.manual_seed(0)
    rows = [model.generate(**inputs, **settings, num_return_sequences=500) for _ in range(count // 500)]
    theirs = torch.cat([row[:, inputs["input_ids"].shape[1] :] for row in rows])
    config = SamplingConfig(max_new_tokens=3)
    (found,) = sample_responses(model, processor, IMAGES[:1], PROMPTS[:1], config, num_return_sequences=count)
    ours = torch.tensor([(one.scored_ids + [end] * 3)[:3] for one in found])
    for place in (1, 2):
        table = torch.stack([torch.bincount(ids[:, place] % bins, minlength=bins) for ids in (ours, theirs)]).double()
        expected = table.sum(dim=0, keepdim=True) / 2
        statistic = float(((table - expected) ** 2 / expected).sum())
        assert float(torch.special.gammaincc(torch.tensor((bins - 1) / 2), torch.tensor(statistic / 2))) > 5e-7


def test_the_token_that_ends_a_response_is_told() -> None:
    model, processor = tiny_models.llava()
    config = SamplingConfig(max_new_tokens=4)
    (found,) = sample_responses(model, processor, IMAGES[:1], PROMPTS[:1], config, num_return_sequences=600)
    ended = [one for one in found if len(one.response_ids) < 4]
    assert ended and all(one.end_id == processor.tokenizer.eos_token_id for one in ended)
    assert all(one.scored_ids == [*one.response_ids, one.end_id] for one in ended)
    whole = [one for one in found if len(one.response_ids) == 4]
    assert whole and all(one.end_id is None and one.scored_ids == list(one.response_ids) for one in whole)


def test_responses_do_not_depend_on_batch_order_or_number() -> None:
    together = sample(num_return_sequences=3)
    assert [len(responses) for responses in together] == [3, 3, 3]
    assert sample(order=(2, 0, 1), num_return_sequences=3) == [together[i] for i in (2, 0, 1)]
    assert sample(replace(CONFIG, max_branches=2), num_return_sequences=3) == together
    assert sample(num_return_sequences=2) == [responses[:2] for responses in together]
    assert len({response.response_ids for responses in together for response in responses}) == 9


def test_keys_address_the_draws_of_each_response() -> None:
    found = sample(keys=["x", "y", 7], num_return_sequences=2)
    assert [response.key for responses in found for response in responses] == ["x/0", "x/1", "y/0", "y/1", "7/0", "7/1"]
    named = [(f"{key}/0", f"{key}/1") for key in ("x", "y", 7)]
    assert sample(keys=named, num_return_sequences=2) == found
    assert sample(keys=["x", "y", 8], num_return_sequences=2)[2] != found[2]


def test_algorithm_1_without_mask_and_guidance_says_the_same() -> None:
    plain = BDHSConfig(mask_threshold=0.0, guided=False, max_iterations=1, max_new_tokens=10, seed=5)
    arguments = ["Any."] * 3, plain, lambda a, b: [0.0] * len(a), ["a", "b", "c"]
    expected = bdhs_sample(*tiny_models.llava(), IMAGES, PROMPTS, *arguments)
    found = sample(keys=[("a",), ("b",), ("c",)])
    assert [(r.text, r.response_ids) for (r,) in found] == [(s.rejected, s.response_ids) for s in expected]


def test_the_image_is_encoded_once_for_all_responses() -> None:
    model, processor = tiny_models.llava()
    sample()  # the checks are done
    calls = []
    handle = model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    sample_responses(model, processor, IMAGES[:1], PROMPTS[:1], CONFIG, num_return_sequences=4)
    handle.remove()
    assert len(calls) == 1


def test_streams_are_read_as_they_are_needed() -> None:
    taken = []

    def prompts() -> Any:
        for number in range(30):
            taken.append(number)
            yield PROMPTS[0]

    stream = iter_responses(*tiny_models.llava(), iter(IMAGES[:1] * 30), prompts(), replace(CONFIG, max_branches=4))
    first = next(stream)
    assert len(taken) < 30
    assert sorted(index for index, _ in [first, *stream]) == list(range(30))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image": b"nope"}, "images: needs an image that can be decoded, got 4 bytes"),
        ({"prompt": 3}, "prompts: needs a string or a list of messages"),
        ({"prompt": "word " * 1100}, "prompts: prompt and reference need at most 1024 tokens"),
        ({"key": 1.5}, "keys: needs integers or strings"),
        ({"key": ("a", "b")}, "keys: needs one key, or one for each of 1 responses, got 2"),
    ],
)
def test_bad_prompts_are_named_and_may_be_skipped(bad: dict[str, Any], message: str) -> None:
    row = {"image": IMAGES[1], "prompt": PROMPTS[1], "key": 1, **bad}
    lists = [IMAGES[0], row["image"]], [PROMPTS[0], row["prompt"]]
    arguments = (*tiny_models.llava(), *lists, CONFIG)
    with pytest.raises(ExampleError, match="example 1: " + message):
        sample_responses(*arguments, keys=[0, row["key"]])
    good, failure = sample_responses(*arguments, keys=[0, row["key"]], on_error="skip")
    assert isinstance(failure, BDHSFailure) and message in failure.reason and failure.index == 1
    assert [good] == sample_responses(*tiny_models.llava(), IMAGES[:1], PROMPTS[:1], CONFIG, keys=[0])


def test_bad_calls_are_named() -> None:
    with pytest.raises(ValueError, match="num_return_sequences: needs an integer of at least 1, got 0"):
        sample(num_return_sequences=0)
    with pytest.raises(ValueError, match=r"lists of equal length, got \{'images': 3, 'prompts': 3, 'keys': 1\}"):
        sample(keys=[1])
    with pytest.raises(ValueError, match="on_error"):
        sample(on_error="ignore")
