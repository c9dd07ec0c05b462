"""The accuracy of scripted annotators on pairs with a known better response, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from helpers.plain import picture

from mmbdhs.training import Comparison, annotator_accuracy

CHOSEN, REJECTED = "A dog.", "A cat."


def pairs(*keys: str) -> list[dict[str, Any]]:
    return [
        {"images": [picture(0)], "prompt": f"{key}?", "chosen": CHOSEN, "rejected": REJECTED, "key": key}
        for key in keys
    ]


class Scripted:
    """Answers from a script of two verdicts for each key: with the chosen response first, and second."""

    def __init__(self, symmetric: bool = False, **script: tuple[int | None, int | None]) -> None:
        self.symmetric, self._script = symmetric, script
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        for comparison in comparisons:
            assert {comparison.first, comparison.second} == {CHOSEN, REJECTED}
            assert comparison.prompt == f"{comparison.key}?"
        asked = [(str(comparison.key), comparison.first == REJECTED) for comparison in comparisons]
        self.asked += asked
        return [self._script[key][second] for key, second in asked]


def test_shares_worked_by_hand_where_the_order_matters() -> None:
    # a: right twice. b: the first response twice. c: undecided, then right. d: wrong twice.
    judge = Scripted(a=(0, 1), b=(0, 0), c=(None, 1), d=(1, 0))
    found = annotator_accuracy(judge, pairs(*"abcd"))
    assert judge.asked == [(key, second) for key in "abcd" for second in (False, True)]
    assert (found.right, found.wrong, found.undecided, found.failed) == (4, 3, 1, 0)
    assert found.accuracy.value == pytest.approx(4 / 7)
    assert found.decided.value == 7 / 8
    assert found.first.value == pytest.approx(4 / 7)  # a 1, b 2, d 1
    # Clusters a 2 of 2, b 1 of 2, c 1 of 1, d 0 of 2: residuals 6/7, −1/7, 3/7, −8/7, squares 110/49 together.
    # V = 4/3 · 6/7 · 110/49 / 49 = 0.05236; (12/49) / V = 4.677 trials; t_6 = 2.4469, t_3 = 3.1824: 2.765 trials.
    # Wilson: z²/n = 1.3893, middle (0.5714 + 0.6947) / 2.3893 = 0.5299, half 0.8203 · √(0.08857 + 0.12562) = 0.3796.
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.1503, 0.9095), abs=2e-4)
    *shares, counts = str(found).splitlines()
    assert [line.split()[:2] for line in shares] == [["accuracy", "0.571"], ["decided", "0.875"], ["first", "0.571"]]
    assert counts == "right 4, wrong 3, undecided 1, failed 0"


def test_a_symmetric_annotator_is_asked_once_about_each_pair_in_alternating_order() -> None:
    judge = Scripted(symmetric=True, a=(0, 1), b=(0, 1), c=(None, None), d=(1, 0))
    found = annotator_accuracy(judge, pairs(*"abcd"))
    assert judge.asked == [("a", False), ("b", True), ("c", False), ("d", True)]
    assert (found.right, found.wrong, found.undecided, found.failed) == (2, 1, 1, 0)
    assert found.accuracy.value == pytest.approx(2 / 3) and found.accuracy.count == 3


@pytest.mark.parametrize("symmetric", [False, True])
def test_always_the_first_response_is_right_half_the_time(symmetric: bool) -> None:
    found = annotator_accuracy(Scripted(symmetric, **dict.fromkeys("abcd", (0, 0))), pairs(*"abcd"))
    assert (found.accuracy.value, found.first.value, found.decided.value) == (1 / 2, 1, 1)


def test_responses_are_read_in_the_layout_of_messages_and_keys_default_to_rows() -> None:
    (pair,) = pairs("a")
    turns = {name: [{"role": "assistant", "content": pair[name]}] for name in ("chosen", "rejected")}
    judge = Scripted(a=(0, 1), **{"0": (1, 0)})
    assert annotator_accuracy(judge, [pair | turns]).right == 2
    assert annotator_accuracy(judge, [pair | {"key": None, "prompt": "0?"}]).wrong == 2


def test_what_cannot_be_measured_is_refused() -> None:
    judge, good = Scripted(a=(0, 1)), pairs("a")[0]
    for bad, message in (
        ({"images": [], "prompt": "a?"}, "needs the columns images, prompt, chosen, rejected, got images, prompt"),
        ("text", "needs the columns images, prompt, chosen, rejected, got 'text'"),
        (good | {"rejected": " "}, "rejected: needs text, got ' '"),
        (good | {"chosen": None}, "chosen: needs a string or a list of messages"),
        (
            good | {"chosen": [{"role": role, "content": "Hm?"} for role in ("assistant", "user", "assistant")]},
            r"chosen: needs one turn of text, got 3 message\(s\)",
        ),
    ):
        with pytest.raises(ValueError, match=f"pairs: row 1: {message}"):
            annotator_accuracy(judge, [good, bad])
    with pytest.raises(ValueError, match="pairs: needs at least one, got none"):
        annotator_accuracy(judge, [])
    with pytest.raises(TypeError, match="pairs: needs a list, got dict"):
        annotator_accuracy(judge, good)
    assert judge.asked == []
    for verdicts in ([0], [0, 2], [0, "1"]):
        with pytest.raises(ValueError, match="annotator: needs 0, 1 or None for each of 2 comparisons, got "):
            annotator_accuracy(lambda comparisons, verdicts=verdicts: verdicts, [good])
