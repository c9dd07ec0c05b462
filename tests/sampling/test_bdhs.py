"""Addressed randomness, distributions, Algorithm 1's bookkeeping, and what happens to bad input."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import FALSE_ALARM, IMAGES, PROMPTS, REFERENCES, chi_square, masked_logits, prompt_inputs
from PIL import Image
from scipy import stats

from mmbdhs import BDHSConfig, BDHSFailure, ExampleError, UnsupportedModelError, bdhs_sample, iter_bdhs_samples
from mmbdhs.decoding.token_sampling import vision_token_ids
from mmbdhs.vlm import VLM

CONFIG = BDHSConfig(mask_threshold=0.5, max_sentence_tokens=8, max_new_tokens=12, max_iterations=2, seed=11)


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


def alike(first: list[str], second: list[str]) -> list[float]:
    return [1.0] * len(first)


def sample(config: BDHSConfig = CONFIG, similarity: Any = unlike, order: list[int] | None = None, **more: Any) -> list:
    model, processor = tiny_models.llava()
    order = order or [0, 1, 2, 3]
    lists = ([column[i] for i in order] for column in (IMAGES, PROMPTS, REFERENCES))
    return bdhs_sample(model, processor, *lists, config, similarity, **more)


def test_samples_do_not_depend_on_max_branches() -> None:
    first, *others = (sample(replace(CONFIG, max_branches=branches), alike) for branches in (64, 5, 1))
    assert others == [first, first]


def test_samples_do_not_depend_on_order_or_batch() -> None:
    together = sample()
    assert sample(order=[2, 0, 3, 1]) == [together[i] for i in (2, 0, 3, 1)]
    assert [sample(order=[i])[0] for i in range(4)] == together


def test_seed_and_key_address_the_draws() -> None:
    assert sample(keys=[1, 2, 3, 4]) == sample(keys=[1, 2, 3, 4])
    one, other = sample(keys=[1, 2, 3, 4]), sample(keys=[5, 6, 7, 8])
    assert all(a.visible_image_tokens != b.visible_image_tokens for a, b in zip(one, other, strict=True))
    reseeded = sample(replace(CONFIG, seed=12))
    assert all(a.visible_image_tokens != b.visible_image_tokens for a, b in zip(sample(), reseeded, strict=True))
    assert [s.key for s in sample(keys=["a", "b", 3, -4])] == ["a", "b", 3, -4]


def test_iterations_draw_afresh_and_the_last_is_unguided() -> None:
    seen: list[list[str]] = []

    def watch(first: list[str], second: list[str]) -> list[float]:
        seen.append(list(first))
        return alike(first, second)

    result = sample(replace(CONFIG, max_iterations=3), watch, order=[0])[0]
    assert (result.iterations, result.guided, result.sentences) == (3, False, ())
    assert result.response_ids and len(set(map(tuple, seen))) == 3
    guided = sample(replace(CONFIG, max_iterations=1), alike, order=[0])[0]
    assert (guided.iterations, guided.guided, guided.response_ids) == (1, True, None)


def test_only_pairs_still_too_similar_go_on() -> None:
    def first_is_alike(first: list[str], second: list[str]) -> list[float]:
        return [0.97 if reference == REFERENCES[0] else 0.96 for reference in second]

    results = sample(similarity=first_is_alike)
    assert [result.iterations for result in results] == [2, 1, 1, 1]
    assert [result.similarity for result in results] == [0.97, 0.96, 0.96, 0.96]


def test_ablation_without_guidance() -> None:
    results = sample(replace(CONFIG, guided=False))
    assert all(not r.guided and r.iterations == 1 and len(r.response_ids) <= 12 for r in results)


def test_splices_rebuild_the_response() -> None:
    for result, reference in zip(sample(), REFERENCES, strict=True):
        assert "".join(s.reference for s in result.sentences) == reference
        spaces = [s.reference[len(s.reference.rstrip()) :] for s in result.sentences]
        parts = [s.kept + s.completion + space for s, space in zip(result.sentences, spaces, strict=True)]
        assert "".join(parts) == result.rejected
        for splice in result.sentences:
            assert splice.swapped or splice.reference.startswith(splice.kept)


def test_vision_tokens_are_never_sampled() -> None:
    model, processor = tiny_models.qwen2_5_vl()
    suppressed = set(vision_token_ids(VLM.of(model), processor.tokenizer))
    config = BDHSConfig(temperature=50.0, max_sentence_tokens=40, max_iterations=1)
    results = bdhs_sample(model, processor, IMAGES, PROMPTS, REFERENCES, config, unlike)
    drawn = {i for r in results for s in r.sentences for i in s.completion_ids}
    assert len(drawn) > 100 and not drawn & suppressed


def test_first_tokens_follow_the_model() -> None:
    """The first token of 1,500 keys against the softmax of a plain masked forward."""
    model, processor = tiny_models.llava()
    count = 1500
    config = BDHSConfig(mask_threshold=0.0, max_sentence_tokens=1, max_iterations=1)
    lists = [IMAGES[3]] * count, [PROMPTS[3]] * count, ["Dog"] * count
    splices = [s.sentences[0] for s in bdhs_sample(model, processor, *lists, config, unlike, keys=range(count))]
    prefix = max((s.prefix_ids for s in splices), key=len)
    chosen = [s.completion_ids[:1] for s in splices if s.prefix_ids == prefix]
    inputs = prompt_inputs(processor, [IMAGES[3]], PROMPTS[3])
    logits = masked_logits(model, inputs, tuple(range(36)), list(prefix))[-1]
    logits[vision_token_ids(VLM.of(model), processor.tokenizer)] = -torch.inf
    chi_square(Counter(ids[0] if ids else processor.tokenizer.eos_token_id for ids in chosen), logits)


def test_shares_follow_the_configuration() -> None:
    """Visible tokens, swaps and cuts of 300 keys."""
    model, processor = tiny_models.llava()
    count = 300
    config = BDHSConfig(mask_threshold=0.7, temperature=0, max_sentence_tokens=1, max_iterations=1)
    lists = ([column[1]] * count for column in (IMAGES, PROMPTS, REFERENCES))
    results = bdhs_sample(model, processor, *lists, config, unlike, keys=range(count))
    visible = sum(len(r.visible_image_tokens) for r in results)
    assert stats.binomtest(visible, count * 36, 0.3).pvalue > FALSE_ALARM
    swapped = sum(s.swapped for r in results for s in r.sentences)
    assert stats.binomtest(swapped, count * 2, 0.5).pvalue > FALSE_ALARM
    cuts = Counter(r.sentences[0].cut for r in results if not r.sentences[0].swapped)
    tokens = len(processor.tokenizer(" No, there is a cat on the table.")["input_ids"])
    assert sorted(cuts) == list(range(1, tokens))
    assert stats.chisquare(list(cuts.values())).pvalue > FALSE_ALARM
    assert min(r.sentences[0].cut for r in results if r.sentences[0].swapped) == 1


def test_streaming_is_lazy_and_complete() -> None:
    model, processor = tiny_models.llava()
    taken = []

    def prompts() -> Any:
        for number in range(40):
            taken.append(number)
            yield PROMPTS[number % 4]

    images, references = (iter([column[n % 4] for n in range(40)]) for column in (IMAGES, REFERENCES))
    config = replace(CONFIG, max_branches=4, max_iterations=1)
    stream = iter_bdhs_samples(model, processor, images, prompts(), references, config, unlike)
    first = next(stream)
    assert len(taken) < 40
    assert sorted(index for index, _ in [first, *stream]) == list(range(40))


def test_model_modes_are_restored() -> None:
    model, _ = tiny_models.llava()
    model.train()
    model.model.vision_tower.eval()
    try:
        sample(order=[0])
        assert model.training and not model.model.vision_tower.training
    finally:
        model.eval()


def test_noise_shows_every_token_of_a_noisy_image() -> None:
    config = replace(CONFIG, noise_steps=500)
    clean = sample(replace(CONFIG, mask_threshold=0.0))
    noisy = sample(config)
    assert all(len(r.visible_image_tokens) == 36 for r in noisy)
    assert [r.rejected for r in noisy] != [r.rejected for r in clean]
    assert noisy == sample(config, order=[3, 2, 1, 0])[::-1]


BAD_EXAMPLES = {
    "references: needs text": {"reference": " \n"},
    "images: needs at least one image": {"image": None},
    "images: needs an image that can be decoded, got 4 bytes": {"image": b"nope"},
    "images: needs a file that is there, got '/nowhere.png'": {"image": "/nowhere.png"},
    "images: needs a PIL image, a path or encoded bytes, got int": {"image": 3},
    "references: prompt and reference need at most 1024 tokens": {"reference": "red " * 1100},
    "prompts: needs as many image placeholders as images, got 0 for 1": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    },
    "prompts: needs a string or a list of messages": {"prompt": 7},
    "keys: needs integers or strings": {"key": 1.5},
    "keys: needs integers of at most 64 bits": {"key": 2**64},
}


@pytest.mark.parametrize("message", BAD_EXAMPLES)
def test_bad_examples_are_named(message: str) -> None:
    model, processor = tiny_models.llava()
    example = {"image": IMAGES[0], "prompt": PROMPTS[0], "reference": REFERENCES[0], "key": 5, **BAD_EXAMPLES[message]}
    lists = [
        [IMAGES[1], example["image"], IMAGES[2]],
        [PROMPTS[1], example["prompt"], PROMPTS[2]],
        [REFERENCES[1], example["reference"], REFERENCES[2]],
    ]
    keys = [1, example["key"], 2]
    with pytest.raises(ExampleError, match="example 1: " + message.replace("(", r"\(").replace(".", r"\.")):
        bdhs_sample(model, processor, *lists, CONFIG, unlike, keys)
    results = bdhs_sample(model, processor, *lists, CONFIG, unlike, keys, on_error="skip")
    assert isinstance(results[1], BDHSFailure) and message in results[1].reason and results[1].index == 1
    good = bdhs_sample(model, processor, *([column[0], column[2]] for column in lists), CONFIG, unlike, [1, 2])
    assert [results[0], results[2]] == good


def test_images_may_be_paths_and_bytes(tmp_path: Any) -> None:
    model, processor = tiny_models.llava()
    path = tmp_path / "image.png"
    IMAGES[0].save(path)
    arguments = PROMPTS[:1], REFERENCES[:1], CONFIG, unlike
    forms = (IMAGES[0], path, str(path), path.read_bytes())
    results = [bdhs_sample(model, processor, [image], *arguments) for image in forms]
    assert results == [results[0]] * 4


@pytest.fixture
def spoiled() -> Any:
    """Lets a hook spoil a module's output for the length of a test."""
    handles = []
    yield lambda module, hook, **options: handles.append(module.register_forward_hook(hook, **options))
    for handle in handles:
        handle.remove()


def test_nan_in_one_image_spoils_no_other_example(spoiled: Any) -> None:
    model, processor = tiny_models.llava()
    clean = sample(order=[0, 1, 3])

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if kwargs.get("pixel_values", args[0] if args else None).mean() > 1.5:
            output.hidden_states[-2].fill_(torch.nan)

    spoiled(model.model.vision_tower, spoil, with_kwargs=True)
    images = [*IMAGES[:2], Image.new("RGB", (60, 40), "white"), IMAGES[3]]
    results = bdhs_sample(model, processor, images, PROMPTS, REFERENCES, CONFIG, unlike, on_error="skip")
    assert isinstance(results[2], BDHSFailure) and "NaN" in results[2].reason
    assert [results[0], results[1], results[3]] == clean


@pytest.mark.parametrize("path", ["native", "sdpa"])
def test_nan_while_decoding_spoils_no_other_example(path: str, spoiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding of a token that one example alone generates turns into NaN."""
    monkeypatch.setenv("MMBDHS_ATTENTION", path)
    model, processor = tiny_models.llava()
    clean = sample()
    words = [processor.tokenizer(text)["input_ids"] for text in (*PROMPTS, *REFERENCES, "USER: ASSISTANT: \n")]
    used = [{i for s in r.sentences for i in (*s.prefix_ids, *s.completion_ids)} for r in clean]
    poisoned = next(
        i
        for s in clean[1].sentences
        for i in s.completion_ids[1:-1]
        if not any(i in ids for ids in (*words, used[0], *used[2:]))
    )

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == poisoned)[..., None], torch.nan)

    spoiled(model.get_input_embeddings(), spoil)
    results = sample(on_error="skip")
    assert isinstance(results[1], BDHSFailure) and "NaN" in results[1].reason
    assert [results[0], *results[2:]] == [clean[0], *clean[2:]]


def test_nan_logits_fail_each_example(spoiled: Any) -> None:
    spoiled(tiny_models.llava()[0].lm_head, lambda module, args, output: output * torch.nan)
    assert all("logits are NaN" in result.reason for result in sample(on_error="skip"))
    with pytest.raises(ExampleError, match=r"example \d: the model's logits are NaN"):
        sample()


def test_bad_calls_are_named() -> None:
    model, processor = tiny_models.llava()
    with pytest.raises(ValueError, match=r"lists of equal length, got \{'images': 4, 'prompts': 3, 'references': 4\}"):
        bdhs_sample(model, processor, IMAGES, PROMPTS[:3], REFERENCES, CONFIG, unlike)
    with pytest.raises(ValueError, match="on_error"):
        sample(on_error="ignore")
    with pytest.raises(ValueError, match=r"similarity: needs \d numbers"):
        sample(similarity=lambda a, b: [1.0])
    with pytest.raises(TypeError, match="similarity: needs a SentenceTransformer"):
        sample(similarity=3)


def test_a_processor_without_chat_template_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_models.llava()[1], "chat_template", None)
    with pytest.raises(ValueError, match=r"^processor: needs a chat template"):
        sample()


def test_both_backends_sample_the_same() -> None:
    """The whole road with the native ops and, in another process, without the binary."""
    code = "import test_bdhs as t; print([(s.rejected, s.visible_image_tokens) for s in t.sample()])"
    shown = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={**os.environ, "MMBDHS_BACKEND": backend, "PYTHONPATH": ".:.."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for backend in ("native", "reference")
    ]
    assert shown[0] == shown[1] and len(shown[0]) > 100


@pytest.mark.parametrize("where", ["examples.capture_decoder_inputs", "sampler.Reference"])
def test_a_fault_of_the_library_is_no_bad_example(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that do not come from a check of the input end the run, also with on_error="skip"."""

    def fail(*_: Any) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(f"mmbdhs.sampling.{where}", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        sample(on_error="skip")


def test_a_prompt_that_the_template_refuses_is_a_bad_example(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = tiny_models.llava()[1]
    template = "{% if messages[0]['content'][1]['text'] == 'Is it red?' %}{{ raise_exception('no') }}{% endif %}"
    monkeypatch.setattr(processor, "chat_template", template + processor.chat_template)
    results = sample(on_error="skip")
    assert [isinstance(result, BDHSFailure) for result in results] == [False, False, False, True]
    assert results[3].reason == "prompts: the chat template refused the messages (no)"


@pytest.mark.parametrize("bad", range(4))
def test_what_is_finished_is_yielded_before_an_error_is_raised(bad: int) -> None:
    """With room for one example, all before the bad one are finished when it is read."""
    references = [*REFERENCES[:bad], "", *REFERENCES[bad + 1 :]]
    config = replace(CONFIG, max_branches=1, max_iterations=1)
    stream = iter_bdhs_samples(*tiny_models.llava(), IMAGES, PROMPTS, references, config, unlike)
    found = {}
    with pytest.raises(ExampleError, match=f"example {bad}: references: needs text"):
        for index, result in stream:
            found[index] = result
    expected = sample(replace(CONFIG, max_iterations=1))
    assert found == {index: expected[index] for index in range(bad)}


def test_errors_can_be_copied_and_pickled() -> None:
    for error in (ExampleError("no text", 3), ExampleError("no text"), UnsupportedModelError("a reason")):
        for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
