"""What the model says is a sample only if it can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import IMAGES

from mmbdhs import BDHSConfig, BDHSFailure, bdhs_sample, povid_sample
from mmbdhs.errors import ExampleError
from mmbdhs.sampling import sampler
from mmbdhs.training.pair_sources import OnlineBDHSSource, TrainingExample

CONFIG = BDHSConfig(max_sentence_tokens=4, max_new_tokens=4, max_iterations=3, temperature=0.0)

WHOLE = replace(CONFIG, guided=False)


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


def sample(reference: str, config: BDHSConfig = CONFIG) -> Any:
    return bdhs_sample(*tiny_models.llava(), IMAGES[:1], ["What?"], [reference], config, unlike, on_error="skip")[0]


@pytest.fixture
def silent() -> Iterator[None]:
    """The model ends every response at once."""
    model, processor = tiny_models.llava()
    end = processor.tokenizer.eos_token_id

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([end]), 1e4)

    handle = model.lm_head.register_forward_hook(hook)
    yield
    handle.remove()


@pytest.mark.parametrize("reference", ["a", "?", "b\n"])
@pytest.mark.usefixtures("silent")
def test_a_response_of_which_nothing_is_kept_does_not_begin_with_its_end(reference: str) -> None:
    """Nothing can be kept of a reference of one token."""
    found = sample(reference)
    assert found.sentences[0].kept == "" and found.rejected.strip()


@pytest.mark.usefixtures("silent")
def test_an_empty_response_is_no_sample() -> None:
    failure = sample("There is a red car.", WHOLE)
    assert isinstance(failure, BDHSFailure) and failure.no_response
    assert failure.reason == "the model's response: needs text, got ''"
    with pytest.raises(ExampleError, match="example 0: the model's response: needs text"):
        bdhs_sample(*tiny_models.llava(), IMAGES[:1], ["What?"], ["A dog."], WHOLE, unlike)


@pytest.mark.usefixtures("silent")
def test_kept_text_alone_is_a_response() -> None:
    assert sample("There is a red car.", BDHSConfig(max_iterations=1)).rejected.startswith("There")


@pytest.mark.usefixtures("silent")
def test_a_training_example_without_a_response_has_nothing_to_learn_from() -> None:
    record = {"images": IMAGES[:1], "prompt": "What?", "chosen": "A dog."}
    source = OnlineBDHSSource(WHOLE, unlike)
    assert source(*tiny_models.llava(), [TrainingExample(record, "k", 0)]) == [None]


@pytest.mark.usefixtures("silent")
def test_a_distorted_response_without_text_is_no_sample() -> None:
    found = povid_sample(*tiny_models.llava(), IMAGES[:1], ["What?"], ["a cat"], on_error="skip")[0]
    assert isinstance(found, BDHSFailure) and found.no_response
    assert found.reason == "the model's response: needs text, got ''"


@pytest.mark.parametrize("spelled", ["The <image> shows a dog.", "A dog.</s> A cat.", "<pad>", " \n"])
def test_a_response_that_spells_tokens_is_drawn_again(spelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary tokens such as "<", "image" and ">" can spell a special one between them."""
    plain = sampler._text
    monkeypatch.setattr(sampler, "_text", lambda pair: spelled if pair.iteration == 1 else plain(pair))
    found = sample("There is a red car. There is a dog.")
    assert found.iterations == 2 and found.guided and spelled not in found.rejected
    monkeypatch.setattr(sampler, "_text", lambda pair: spelled)
    failure = sample("There is a red car. There is a dog.")
    assert isinstance(failure, BDHSFailure) and failure.no_response


def alike(first: list[str], second: list[str]) -> list[float]:
    return [1.0] * len(first)


@pytest.mark.parametrize("markup", ["<think>\n{}\n</think>\n\n{}", "<answer>{} {}</answer>", "{}<br>{}"])
def test_markup_stays_in_every_iteration(markup: str) -> None:
    """Also in the last one, which is unguided for other references and accepted whatever its similarity."""
    reference = markup.format("There is a car.", "There is a dog.")
    arguments = (*tiny_models.llava(), IMAGES[:1], ["What?"], [reference])
    for iterations in (1, 2, 3):
        found = bdhs_sample(*arguments, replace(CONFIG, max_iterations=iterations, temperature=1.0), alike)[0]
        frame = markup.split("{}")
        assert found.iterations == iterations and found.guided
        assert found.rejected.startswith(frame[0]) and found.rejected.endswith(frame[2])
        assert frame[1].strip() in found.rejected
