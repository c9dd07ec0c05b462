"""Where candidates come from: the data, or the policy under the address of a visit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.preference_records import fresh_miniature, scene_records

from mmbdhs import BDHSConfig, bdhs_sample, povid_sample
from mmbdhs.training.annotators import Comparison
from mmbdhs.training.pair_sources import (
    Candidates,
    Distorted,
    Mixed,
    OnlineBDHS,
    OnlinePairs,
    Stored,
    Supervised,
    Visit,
)

RECORDS = scene_records(3)
VISITS = [Visit(record, record["key"], 1) for record in RECORDS]
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
    visits = [Visit(record, "k", 0) for record in records]
    assert Stored()(None, None, visits) == [Candidates(("Yes.", "No.")), Candidates(("A.", "B."), (-1.0, -2.0))]
    assert Supervised()(None, None, visits) == [Candidates(("Yes.",)), Candidates(("A.",))]


def test_online_bdhs_samples_under_the_visit(miniature: tuple[Any, Any]) -> None:
    keys = ["scene-0#1", "scene-1#1", "scene-2#1"]
    samples = bdhs_sample(*miniature, IMAGES, PROMPTS, CHOSEN, CONFIG, unlike, keys)
    drawn = [sample.rejected for sample in samples]
    found = OnlineBDHS(CONFIG, unlike)(*miniature, VISITS)
    assert found == [Candidates(pair) for pair in zip(CHOSEN, drawn, strict=True)]
    found = OnlineBDHS(CONFIG, unlike, with_stored=True)(*miniature, VISITS)
    assert found == [Candidates(three) for three in zip(CHOSEN, REJECTED, drawn, strict=True)]
    assert OnlineBDHS(CONFIG, unlike)(*miniature, [replace(visit, visit=2) for visit in VISITS]) != found


def test_examples_that_cannot_be_sampled_are_nothing_if_they_may_be_skipped(miniature: tuple[Any, Any]) -> None:
    bad = Visit(RECORDS[0] | {"images": []}, "bad", 0)
    found = OnlineBDHS(CONFIG, unlike, on_error="skip")(*miniature, [bad, VISITS[1]])
    assert found[0] is None and found[1] is not None
    with pytest.raises(ValueError, match="images: needs at least one image"):
        OnlineBDHS(CONFIG, unlike)(*miniature, [bad])


def test_distorted_is_povids_answer_to_a_noisy_image(miniature: tuple[Any, Any]) -> None:
    keys = [visit.address for visit in VISITS]
    samples = povid_sample(*miniature, IMAGES, PROMPTS, CHOSEN, 400, 3, keys)
    found = Distorted(400, 3)(*miniature, VISITS)
    expected = zip(CHOSEN, REJECTED, [sample.rejected for sample in samples], strict=True)
    assert found == [Candidates(texts) for texts in expected]


def test_online_pairs_are_ranked_by_the_annotator(miniature: tuple[Any, Any]) -> None:
    seen: list[Comparison] = []

    def annotator(comparisons: list[Comparison]) -> list[int | None]:
        seen.extend(comparisons)
        return [1, None, 0]

    found = OnlinePairs(annotator, BDHSConfig(max_new_tokens=40))(*miniature, VISITS)
    assert [comparison.key for comparison in seen] == [visit.address for visit in VISITS]
    assert all(comparison.first != comparison.second for comparison in seen)
    assert found == [Candidates((seen[0].second, seen[0].first)), None, Candidates((seen[2].first, seen[2].second))]


def test_online_pairs_see_the_whole_image_and_no_reference(miniature: tuple[Any, Any]) -> None:
    """Greedily both responses are the same, so that the annotator is never asked; alone, each is bdhs_sample's."""
    plain = BDHSConfig(mask_threshold=0.0, guided=False, max_iterations=1, max_new_tokens=40)
    first = bdhs_sample(*miniature, IMAGES, PROMPTS, CHOSEN, plain, unlike, [f"{v.address}/a" for v in VISITS])
    seen: list[Comparison] = []

    def annotator(comparisons: list[Comparison]) -> list[int | None]:
        seen.extend(comparisons)
        return [None] * len(comparisons)

    assert OnlinePairs(annotator, replace(CONFIG, max_new_tokens=40))(*miniature, VISITS) == [None] * 3
    assert [comparison.first for comparison in seen] == [sample.rejected for sample in first]
    seen.clear()
    assert OnlinePairs(annotator, replace(CONFIG, temperature=0, max_new_tokens=40))(*miniature, VISITS) == [None] * 3
    assert not seen


def test_mixed_serves_each_visit_from_the_source_that_its_draw_names() -> None:
    """Of 4,000 visits a share within 4 standard errors of p; a false alarm in 16,000 runs."""

    def named(name: str) -> Any:
        return lambda model, processor, visits: [Candidates((f"{name} {visit.address}",)) for visit in visits]

    mixed = Mixed(named("first"), named("second"), p=0.3, seed=1)
    visits = [Visit({}, number, epoch) for number in range(1000) for epoch in range(4)]
    served = [candidates.texts[0].split() for candidates in mixed(None, None, visits)]
    assert [address for _, address in served] == [visit.address for visit in visits]
    share = sum(name == "first" for name, _ in served) / len(visits)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(visits)) ** 0.5
    assert mixed(None, None, visits[5:6])[0].texts[0].split() == served[5]
    other = Mixed(named("first"), named("second"), p=0.3, seed=2)(None, None, visits)
    assert [candidates.texts[0].split() for candidates in other] != served
    with pytest.raises(ValueError, match=r"p: needs a number in \[0, 1\], got 2"):
        Mixed(Stored(), Stored(), p=2)


def test_mixed_needs_what_both_need() -> None:
    assert Mixed(Supervised(), Stored()).columns == ("chosen", "rejected")
