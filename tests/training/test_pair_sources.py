"""Candidates come from the data, or from the policy under the address of an example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.preference_records import fresh_miniature, scene_records

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.data import key_address
from mmbdhs.errors import ExampleError
from mmbdhs.sampling import Noise
from mmbdhs.training.annotators import Comparison
from mmbdhs.training.pair_sources import (
    Candidates,
    DistortedSource,
    MixedSource,
    OnlineBDHSSource,
    OnlinePairsSource,
    PairSource,
    StoredSource,
    SupervisedSource,
    TrainingExample,
)

RECORDS = scene_records(3)
EXAMPLES = [TrainingExample(record, record["key"], 1) for record in RECORDS]
CHOSEN, REJECTED, IMAGES, PROMPTS = (
    [record[name] for record in RECORDS] for name in ("chosen", "rejected", "images", "prompt")
)
CONFIG = BDHSConfig(mask_threshold=0.9, max_iterations=1)


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


@pytest.fixture(scope="module")
def miniature() -> tuple[Any, Any]:
    return fresh_miniature()


def test_stored_pairs_are_text_or_messages() -> None:
    message = [{"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]
    records = [
        {"chosen": message, "rejected": "No."},
        {"chosen": "A.", "rejected": "B.", "reference_logps": [-1.0, -2.0]},
    ]
    examples = [TrainingExample(record, "k", 0) for record in records]
    assert StoredSource()(None, None, examples) == [Candidates(("Yes.", "No.")), Candidates(("A.", "B."), (-1.0, -2.0))]
    assert SupervisedSource()(None, None, examples) == [Candidates(("Yes.",)), Candidates(("A.",))]


def test_online_bdhs_samples_under_the_address_of_the_example(miniature: tuple[Any, Any]) -> None:
    keys = ["scene-0#1", "scene-1#1", "scene-2#1"]
    samples = bdhs_sample(*miniature, IMAGES, PROMPTS, CHOSEN, CONFIG, unlike, keys)
    drawn = [sample.rejected for sample in samples]
    found = OnlineBDHSSource(CONFIG, unlike)(*miniature, EXAMPLES)
    assert found == [Candidates(pair) for pair in zip(CHOSEN, drawn, strict=True)]
    found = OnlineBDHSSource(CONFIG, unlike, with_stored=True)(*miniature, EXAMPLES)
    assert found == [Candidates(three) for three in zip(CHOSEN, REJECTED, drawn, strict=True)]
    assert OnlineBDHSSource(CONFIG, unlike)(*miniature, [replace(example, epoch=2) for example in EXAMPLES]) != found


@pytest.mark.parametrize("source", [OnlineBDHSSource(CONFIG, unlike), DistortedSource(), StoredSource()])
def test_an_error_takes_the_place_of_an_example_that_cannot_be_used(source: PairSource, miniature: Any) -> None:
    thanks = [{"role": "assistant", "content": "A car."}, {"role": "user", "content": "Thanks."}]
    sampled = isinstance(source, OnlineBDHSSource)  # others leave it to the trainer to look at the images
    bad = {"images": []} if sampled else {"images": [], "chosen": thanks}
    first, second = source(*miniature, [TrainingExample(RECORDS[0] | bad, "bad", 0), EXAMPLES[1]])
    assert isinstance(first, ExampleError) and isinstance(second, Candidates)
    need = "chosen: needs messages that begin and end with the assistant's" if "chosen" in bad else "images: needs"
    assert str(first).startswith(need)


def test_distorted_images_are_those_of_eq_9_and_differ_by_epoch(miniature: tuple[Any, Any]) -> None:
    found = DistortedSource(400, 3)(*miniature, EXAMPLES)
    later = DistortedSource(400, 3)(*miniature, [replace(example, epoch=7) for example in EXAMPLES])
    for example, one, other in zip(EXAMPLES, found, later, strict=True):
        assert one.distorted == Noise(400, "clip", 3, key_address(example.address), 1) != other.distorted
        assert one.responses == (example.record["chosen"], example.record["rejected"])
    assert [len(one.responses) for one in DistortedSource(with_stored=False)(*miniature, EXAMPLES)] == [1] * len(found)


def test_online_pairs_are_ranked_by_the_annotator(miniature: tuple[Any, Any]) -> None:
    seen: list[Comparison] = []

    def annotator(comparisons: list[Comparison]) -> list[int | None]:
        seen.extend(comparisons)
        return [1, None, 0]

    found = OnlinePairsSource(annotator, BDHSConfig(max_new_tokens=40))(*miniature, EXAMPLES)
    assert [comparison.key for comparison in seen] == [example.address for example in EXAMPLES]
    assert all(comparison.first != comparison.second for comparison in seen)
    assert found == [Candidates((seen[0].second, seen[0].first)), None, Candidates((seen[2].first, seen[2].second))]


def test_online_pairs_see_the_whole_image_and_no_reference(miniature: tuple[Any, Any]) -> None:
    """Greedily both responses are the same, so that the annotator is never asked; alone, each is bdhs_sample's."""
    plain = BDHSConfig(mask_threshold=0.0, guided=False, max_iterations=1, max_new_tokens=40)
    first = bdhs_sample(*miniature, IMAGES, PROMPTS, CHOSEN, plain, unlike, [f"{v.address}/a" for v in EXAMPLES])
    seen: list[Comparison] = []

    def annotator(comparisons: list[Comparison]) -> list[int | None]:
        seen.extend(comparisons)
        return [None] * len(comparisons)

    assert OnlinePairsSource(annotator, replace(CONFIG, max_new_tokens=40))(*miniature, EXAMPLES) == [None] * 3
    assert [comparison.first for comparison in seen] == [sample.rejected for sample in first]
    seen.clear()
    greedy = OnlinePairsSource(annotator, replace(CONFIG, temperature=0, max_new_tokens=40))
    assert greedy(*miniature, EXAMPLES) == [None] * 3 and not seen


def test_mixed_takes_each_example_from_the_source_that_its_draw_names() -> None:
    """The share of 4,000 examples is within 4 standard errors of p; a false alarm in 16,000 runs."""

    def named(name: str) -> Any:
        return lambda model, processor, examples: [Candidates((f"{name} {example.address}",)) for example in examples]

    mixed = MixedSource(named("first"), named("second"), p=0.3, seed=1)
    examples = [TrainingExample({}, number, epoch) for number in range(1000) for epoch in range(4)]
    served = [candidates.responses[0].split() for candidates in mixed(None, None, examples)]
    assert [address for _, address in served] == [example.address for example in examples]
    share = sum(name == "first" for name, _ in served) / len(examples)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(examples)) ** 0.5
    assert mixed(None, None, examples[5:6])[0].responses[0].split() == served[5]
    other = MixedSource(named("first"), named("second"), p=0.3, seed=2)(None, None, examples)
    assert [candidates.responses[0].split() for candidates in other] != served
    with pytest.raises(ValueError, match=r"p: needs a number in \[0, 1\], got 2"):
        MixedSource(StoredSource(), StoredSource(), p=2)


def test_mixed_needs_what_both_need() -> None:
    assert MixedSource(SupervisedSource(), StoredSource()).columns == ("chosen", "rejected")
