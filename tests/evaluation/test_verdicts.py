"""Verdicts of judges by the rules of the published scripts, and the published reviews."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmbdhs.evaluation.llava_bench import review_counts
from mmbdhs.evaluation.verdicts import object_list, rating, share, two_scores


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        ("It is right.\nRating: 5, very informative", 5),
        ("RATING: 0", 0),
        ("Rating: 3 at first, but then rating: 3", 3),
        ("Rating: 3 or rating: 4", None),
        ("Rating:4", None),
        ("Rating: 7", None),
        ("", None),
        ("<think>Rating: 2? No.</think>\nRating: 6", 6),
        ("Is it rating: six? Rating: 1.", 1),
    ],
)
def test_ratings(verdict: str, score: int | None) -> None:
    assert rating(verdict) == score


@pytest.mark.parametrize(
    ("verdict", "scores"),
    [
        ("8 9\nBoth are good.", (8, 9)),
        ("9,8.5", (9, 8.5)),
        ("9, 8.5\n", None),  # comma and space make three pieces, as in the original
        ("8  9", None),
        ("8 9 7", None),
        ("8/10 9/10", None),
        ("Scores: 8 9", None),
        ("nan 8", None),
        ("", None),
        ("<think>7 7?</think>\n\n8 9\nGood.", (8, 9)),
    ],
)
def test_two_scores(verdict: str, scores: tuple[float, float] | None) -> None:
    assert two_scores(verdict) == scores


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        ("0.5", 0.5),
        ("1", 1),
        ("0.0 because", 0),
        ("1.1", None),
        ("-0.1", None),
        ("half", None),
        ("", None),
        ("nan", None),
    ],
)
def test_shares(verdict: str, score: float | None) -> None:
    assert share(verdict) == score


@pytest.mark.parametrize(
    ("verdict", "names"),
    [
        ('["dog", "table"]', ["dog", "table"]),
        ('The objects are:\n["dog"]', ["dog"]),
        ("[]", []),
        ("()", None),
        ('{"dog": 1}', None),
        ("[1]", None),
        ("dog, table", None),
    ],
)
def test_object_lists(verdict: str, names: list[str] | None) -> None:
    assert object_list(verdict) == names


def test_an_unreadable_review_counts_minus_one() -> None:
    assert review_counts("none") == {
        "score": (-100, -1),
        "model": (-1, 1),
        "reference": (-1, 1),
        "unreadable": (1, 1),
    }


@pytest.mark.parametrize("name", ["alpaca-13b", "bard", "gpt35"])
def test_published_reviews_have_their_published_scores(name: str) -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "llava" / f"review_{name}.jsonl"
    if not path.exists():
        pytest.skip("the published reviews are not here")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    read = {row["question_id"]: two_scores(row["text"]) for row in rows}
    # The three questions of mathematics have another instruction and scores that were read by hand.
    assert [number for number, scores in read.items() if scores is None] == [68, 69, 70]
    published = {row["question_id"]: tuple(row["score"]) for row in rows if read[row["question_id"]]}
    assert len(published) == 77 and published == {number: scores for number, scores in read.items() if scores}
