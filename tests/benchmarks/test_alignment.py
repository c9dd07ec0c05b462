"""What the alignment benchmark's own parts say of captions, by hand."""

from __future__ import annotations

import alignment
import alignment_world
import pytest
from alignment_methods import other_captions

from mmbdhs.miniature.world import Scene, Thing
from mmbdhs.training.annotators import Comparison

SCENE = Scene("lake", (Thing("boat", "red", 0), Thing("fish", "blue", 4)))
TRUE, HALF, FALSE = "The boat is red.", "The boat is red. The cat is black.", "The boat is green. The cat is black."


def test_captions_are_as_alike_as_the_claims_they_share() -> None:
    first = ["The boat is red. The fish is blue.", TRUE, TRUE]
    second = ["The fish is blue. The boat is red.", HALF, FALSE]
    assert alignment_world.same_claims(first, second) == [1.0, 0.5, 0.0]


def test_the_oracle_prefers_the_smaller_share_of_wrong_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(alignment_world, "make_scene", lambda *address: asked.append(address) or SCENE)
    pairs = ((TRUE, HALF), (FALSE, HALF), (HALF, HALF), ("", FALSE))
    comparisons = [Comparison("7#1", [], "Describe the image.", *pair) for pair in pairs]
    assert alignment_world.truthful(comparisons) == [0, 1, None, 0]
    assert set(asked) == {("uniform", 7, alignment_world.PAIR_SEED)}


def test_a_rejected_caption_belongs_to_another_image() -> None:
    examples = alignment_world.records(5, seed=1)
    assert [example["key"] for example in examples] == [5, 6, 7, 8, 9]
    rejected = other_captions(None, examples)
    assert sorted(rejected) == sorted(example["chosen"] for example in examples)
    assert all(text != example["chosen"] for text, example in zip(rejected, examples, strict=True))


def test_cuts_are_means_over_runs_and_intervals_those_of_student() -> None:
    baseline = [{"hallucination": 0.4, "recall": 0.5}, {"hallucination": 0.4, "recall": 0.5}]
    scores = [{"hallucination": 0.2, "recall": 0.4}, {"hallucination": 0.3, "recall": 0.4}]
    found = alignment._summary(scores, baseline)
    assert found["cut"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["hallucination"] == pytest.approx(0.25) and found["recall ±"] == 0
    assert found["±"] == pytest.approx(12.7062 * 0.05, rel=1e-4)  # t of one degree of freedom times s / √2
    assert alignment._summary(scores[:1], baseline[:1])["±"] is None


def test_the_quick_run_fails_where_bdhs_does_not_help() -> None:
    rates = {"baseline": 0.5, "SFT": 0.5, "DPO, BDHS, rho 0": 0.5, "DPO, BDHS": 0.44}
    found = {name: [{"hallucination": rate}] for name, rate in rates.items()}
    alignment._require_help(found)
    found["SFT"] = [{"hallucination": 0.45}]
    with pytest.raises(SystemExit, match="a tenth less than baseline, SFT"):
        alignment._require_help(found)
