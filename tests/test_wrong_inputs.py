"""Wrong arguments raise an error that names the argument, what is needed and what arrived; nothing goes on silently."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plain import picture
from helpers.preference_records import fresh_miniature, full_run, scene_records

from mmbdhs import (
    BDHSConfig,
    SamplingConfig,
    TrainConfig,
    bdhs_sample,
    iter_bdhs_samples,
    iter_responses,
    povid_sample,
    sample_responses,
    train,
)
from mmbdhs.data import open_records, read_records
from mmbdhs.evaluation import pope
from mmbdhs.logprobs import encode_responses, reference_logps, response_logps, separate_logps
from mmbdhs.losses import dpo_loss
from mmbdhs.training import DistortedSource, OnlineBDHSSource, OnlinePairsSource, StoredSource, pairwise

IMAGE, PROMPT, TEXT = picture(0, 32, 32), "What is it?", "There is a red car."
CONFIG = BDHSConfig(max_iterations=1, max_sentence_tokens=4)


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


@cache
def miniature() -> tuple[Any, Any]:
    return fresh_miniature()


def sampled(**changes: Any) -> Any:
    arguments = {
        "model": miniature()[0],
        "processor": miniature()[1],
        "images": [IMAGE],
        "prompts": [PROMPT],
        "references": [TEXT],
        "config": CONFIG,
        "similarity": unlike,
    }
    return bdhs_sample(**arguments | changes)


def streamed(**changes: Any) -> Any:
    arguments = {"images": [IMAGE], "prompts": [PROMPT], "references": [TEXT], "config": CONFIG, "similarity": unlike}
    return list(iter_bdhs_samples(*miniature(), **arguments | changes))


def responses(**changes: Any) -> Any:
    return sample_responses(*miniature(), **{"images": [IMAGE], "prompts": [PROMPT]} | changes)


def logps(way: Any = response_logps, ids: Any = ((5, 6),), masks: Any = None, **changes: Any) -> Any:
    inputs, _ = encode_responses(*miniature(), IMAGE, PROMPT, [TEXT])
    changed = {name: value for name, value in (inputs | changes).items() if value is not None}
    return way(miniature()[0], [changed], [ids], masks=masks)


def trained(**changes: Any) -> Any:
    arguments = {
        "model": miniature()[0],
        "processor": miniature()[1],
        "records": scene_records(1),
        "source": StoredSource(),
        "objective": pairwise(dpo_loss),
        "config": full_run("/nowhere/at/all"),
    }
    return train(**arguments | changes)


def nan_pixels() -> torch.Tensor:
    inputs, _ = encode_responses(*miniature(), IMAGE, PROMPT, [TEXT])
    return inputs["pixel_values"] * math.nan


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    # One thing where a list is needed.
    "an image for images": (lambda: sampled(images=IMAGE), "images: needs a list, got Image"),
    "a path for images": (lambda: sampled(images="a.png"), "images: needs a list, got 'a.png'"),
    "a text for prompts": (lambda: sampled(prompts="What?"), "prompts: needs a list, got 'What.'"),
    "a text for references": (lambda: sampled(references="A car."), "references: needs a list, got 'A car.'"),
    "a generator for images": (lambda: sampled(images=(i for i in [IMAGE])), "images: needs a list, got generator"),
    "None for prompts": (lambda: sampled(prompts=None), "prompts: needs a list, got NoneType"),
    "a number for keys": (lambda: sampled(keys=3), "keys: needs a list, got int"),
    "lists of other lengths": (lambda: sampled(images=[IMAGE] * 2), "need lists of equal length"),
    "a text in a stream": (lambda: streamed(prompts="abc", images=[IMAGE] * 3), "prompts: needs an iterable"),
    "an image in a stream": (lambda: streamed(images=IMAGE), "images: needs an iterable"),
    "a dict in a stream": (lambda: streamed(references={"a": 1}), "references: needs an iterable"),
    "a text for prompts of responses": (lambda: responses(prompts="abc", images=[IMAGE] * 3), "prompts: needs a list"),
    "a stream of responses": (lambda: list(iter_responses(*miniature(), IMAGE, "a")), "images: needs an iterable"),
    "a text for responses": (lambda: encode_responses(*miniature(), IMAGE, PROMPT, "abc"), "responses: needs a list"),
    "a number for data": (lambda: open_records(3), "data: needs a .json, .jsonl or .parquet file, a folder"),
    "a line that is no record": (lambda: read_records(_file('{"images": "a", "prompt": 3}')), "row 0: prompt: needs a"),
    # Model, processor and configuration.
    "a name for the model": (
        lambda: sampled(model="llava"),
        "model: needs a loaded model of transformers, got 'llava'",
    ),
    "None for the model": (lambda: sampled(model=None), "model: needs a loaded model of transformers, got NoneType"),
    "model and processor swapped": (
        lambda: sampled(model=miniature()[1], processor=miniature()[0]),
        "got LlavaProcessor. Are model and processor swapped?",
    ),
    "a name for the processor": (lambda: sampled(processor="llava"), "processor: needs a processor with a tokenizer"),
    "a tokenizer for the processor": (
        lambda: sampled(processor=miniature()[1].tokenizer),
        "processor: needs a processor with a tokenizer",
    ),
    "a model for the processor": (lambda: sampled(processor=miniature()[0]), "processor: needs a processor"),
    "a name for the model of povid": (
        lambda: povid_sample("m", miniature()[1], [IMAGE], [PROMPT], [TEXT]),
        "model: needs a loaded model",
    ),
    "a dict for the config": (lambda: sampled(config={"seed": 1}), "config: needs a BDHSConfig, got dict"),
    "a config without iterations": (lambda: sampled(config=SamplingConfig()), "config: needs a BDHSConfig, got Samp"),
    "a dict for the config of responses": (lambda: responses(config={}), "config: needs a SamplingConfig, got dict"),
    "a text for a number of responses": (lambda: responses(num_return_sequences="2"), "num_return_sequences: needs"),
    "a name for on_error": (lambda: sampled(on_error="ignore"), "on_error: needs 'raise' or 'skip', got 'ignore'"),
    "guided='no'": (lambda: BDHSConfig(guided="no"), "guided: needs one of True, False, got 'no'"),
    "temperature=inf": (lambda: BDHSConfig(temperature=math.inf), "temperature: needs a finite number"),
    "temperature='1'": (lambda: BDHSConfig(temperature="1"), "temperature: needs a finite number"),
    "max_sentence_tokens=2**31": (lambda: BDHSConfig(max_sentence_tokens=2**31), "max_sentence_tokens: needs"),
    "max_new_tokens=2**31": (lambda: SamplingConfig(max_new_tokens=2**31), "max_new_tokens: needs an integer in"),
    # Similarity.
    "one similarity for all": (lambda: sampled(similarity=lambda a, b: 0.5), "similarity: needs a list of numbers"),
    "words for similarities": (lambda: sampled(similarity=lambda a, b: ["x"] * len(a)), "similarity: needs a list"),
    "infinite similarities": (lambda: sampled(similarity=lambda a, b: [math.inf] * len(a)), "similarity: needs 1 num"),
    "too few similarities": (lambda: sampled(similarity=lambda a, b: []), "similarity: needs 1 numbers"),
    "a number for the similarity": (lambda: sampled(similarity=3), "similarity: needs a SentenceTransformer"),
    # Log-probabilities.
    "no pixels": (lambda: logps(pixel_values=None), "prompts: needs the pixel values of its images, got"),
    "no pixels, apart": (lambda: logps(separate_logps, pixel_values=None), "prompts: needs the pixel values"),
    "NaN pixels": (lambda: logps(pixel_values=nan_pixels()), "prompts: needs finite numbers, got NaN or infinity in"),
    "two prompts in one": (
        lambda: logps(input_ids=torch.ones(2, 5, dtype=torch.int64)),
        "prompts: needs input_ids",
    ),
    "an id beyond the vocabulary": (lambda: logps(ids=[[5, 10**6]]), "responses: needs token ids in 0 … "),
    "a negative id": (lambda: logps(ids=[[-100, 5]]), "responses: needs token ids in 0 … .*got -100"),
    "fractions for ids": (lambda: logps(ids=[[1.7, 2.2]]), "responses: needs token ids, got numbers of"),
    "bools for ids": (lambda: logps(ids=[[True, False]]), "responses: needs token ids, got numbers of"),
    "the image token": (lambda: logps(ids=[[miniature()[0].config.image_token_id]]), "needs tokens of text"),
    "no responses": (lambda: logps(ids=[]), "responses: needs a list for each of 1"),
    "masks that are too short": (lambda: logps(masks=[[[True]]]), "masks: needs a bool for each token"),
    "no reference": (
        lambda: reference_logps(miniature()[0], [], []),
        "reference: needs a model, or adapters to switch off",
    ),
    # Training.
    "a name for the source": (lambda: trained(source="stored"), r"source: needs an object such as StoredSource\(\)"),
    "a class for the source": (
        lambda: trained(source=StoredSource),
        r"source: needs an object such as StoredSource\(\)",
    ),
    "a name for the objective": (lambda: trained(objective="dpo"), r"objective: needs an object such as pairwise\("),
    "a loss for the objective": (
        lambda: trained(objective=dpo_loss),
        r"objective: needs an object such as pairwise\(dpo_loss\), got the loss dpo_loss itself",
    ),
    "a dict for the settings": (lambda: trained(config={"output_dir": "x"}), "config: needs a TrainConfig, got dict"),
    "a generator for the records": (lambda: trained(records=iter(())), "max_steps: needs a number for records without"),
    "a path for the records": (lambda: trained(records="pairs.jsonl"), "records: needs a list or a dataset"),
    "no records": (lambda: trained(records=[]), "records: needs at least one that can be used"),
    "records that are lists": (lambda: trained(records=[[1]]), "records: row 0: needs a mapping"),
    "a name for the trained model": (lambda: trained(model="llava"), "model: needs a loaded model"),
    "a name for the trainer's processor": (lambda: trained(processor="llava"), "processor: needs a processor"),
    "learning_rate=inf": (lambda: TrainConfig("x", learning_rate=math.inf), "learning_rate: needs a finite number"),
    "output_dir=''": (lambda: TrainConfig(""), "output_dir: needs a path, got ''"),
    "a dict for the source's config": (lambda: OnlineBDHSSource({"seed": 1}), "config: needs a BDHSConfig, got dict"),
    "too many steps of noise": (lambda: DistortedSource(noise_steps=2000), "noise_steps: needs an integer in"),
    "a dict for sampling": (lambda: OnlinePairsSource(len, {"seed": 1}), "sampling: needs a SamplingConfig, got dict"),
    "weights of text": (lambda: _averaged("ab"), "weights"),
    "weights that are too few": (lambda: _averaged([1.0]), "weights"),
    "a loss setting of text": (lambda: _loss(beta="0.1"), "beta: needs a finite number above 0, got '0.1'"),
    "a margin of text": (lambda: _loss(margin="2"), "margin"),
    "an unknown loss setting": (lambda: pairwise(dpo_loss, gama=1), "gama"),
    # Evaluation.
    "splits of None": (lambda: pope(["yes"], ["yes"], splits=[None]), "splits"),
    "answers of None": (lambda: pope([None], ["yes"]), "answers"),
}


def _file(line: str) -> Path:
    path = Path(pytest.importorskip("tempfile").mkdtemp()) / "pairs.jsonl"
    path.write_text(line + "\n")
    return path


def _policy() -> Any:
    from mmbdhs.logprobs import ResponseLogps

    return ResponseLogps(-torch.ones(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool))


def _averaged(weights: Any) -> Any:
    return pairwise(dpo_loss, weights=weights)(_policy(), _policy().sums)


def _loss(**settings: Any) -> Any:
    four = [-torch.ones(2)] * 4
    return dpo_loss(*four, **settings)


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments_are_named(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
