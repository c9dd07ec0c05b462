"""POPE's scores against published ones, and its rule for answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmbdhs.evaluation import PopeItems, parse_answer, pope, read_pope


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes, there is a dog.", True),
        ("No, there is no dog.", False),
        ("There is not a dog in the image.", False),
        ("no", False),
        ("No", False),
        ("", True),
        ("NO", True),
        ("No!", True),
        ("None of them.", True),
        ("nothing, really", True),
        ("Yes. No dog is there.", True),
        ("There is a dog\nno", True),
        ("Well, no, I think.", False),
        (".No", True),
    ],
)
def test_answers_are_read_by_the_published_rule(text: str, yes: bool) -> None:
    assert parse_answer(text) is yes


def test_published_counts_give_published_scores() -> None:
    """TP 1183, FP 31, TN 1379, FN 317 on the older random split: accuracy 0.8804, F1 0.8718 (LLaVA, issue 626)."""
    counts = {("Yes.", "yes"): 1183, ("Yes.", "no"): 31, ("No.", "no"): 1379, ("No.", "yes"): 317}
    rows = [row for row, count in counts.items() for _ in range(count)]
    found = pope(*zip(*rows, strict=True))["all"]
    assert found.rows == 2910
    assert {name: round(e.value, 4) for name, e in found.metrics.items()} == {
        "accuracy": 0.8804,
        "precision": 0.9745,
        "recall": 0.7887,
        "f1": 0.8718,
        "yes_ratio": 0.4172,
    }
    assert [e.count for e in found.metrics.values()] == [2910, 1214, 1500, 1531, 2910]
    assert str(found).splitlines()[0] == "accuracy   0.880 [0.868, 0.892] (n = 2910)"


def test_splits_are_scored_apart_and_images_widen_intervals() -> None:
    answers, labels = ["yes", "No", "yes", "No"] * 6, [True, False, False, True] * 6
    splits = ["random", "random", "popular", "popular"] * 6
    images = [number // 4 % 3 for number in range(24)]
    found = pope(answers, labels, images, splits)
    assert {split: (r.rows, r.accuracy.value) for split, r in found.items()} == {
        "random": (12, 1.0),
        "popular": (12, 0.0),
        "all": (24, 0.5),
    }
    alone = pope(answers, labels, splits=splits)
    assert found["random"].accuracy.low < alone["random"].accuracy.low


def test_the_row_over_all_splits_counts_every_question_once() -> None:
    # random: TP 1, FN 1, TN 2; popular: TP 1, FP 3. Together TP 2, FP 3, TN 2, FN 1; the mean of the splits' F1,
    # 2/3 and 2/5, is 8/15, but F1 of all is 4/8.
    counts = {("yes", "yes", "random"): 1, ("No", "yes", "random"): 1, ("No", "no", "random"): 2}
    counts |= {("yes", "yes", "popular"): 1, ("yes", "no", "popular"): 3}
    answers, labels, splits = zip(*(row for row, count in counts.items() for _ in range(count)), strict=True)
    found = pope(answers, labels, splits=splits)
    assert {split: [e.value for e in r.metrics.values()] for split, r in found.items()} == {
        "random": pytest.approx([3 / 4, 1, 1 / 2, 2 / 3, 1 / 4]),
        "popular": pytest.approx([1 / 4, 1 / 4, 1, 2 / 5, 1]),
        "all": pytest.approx([4 / 8, 2 / 5, 2 / 3, 4 / 8, 5 / 8]),
    }
    header, *rows = str(found).splitlines()
    assert header.split() == ["split", "accuracy", "precision", "recall", "f1", "yes_ratio", "rows"]
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [("random", "4"), ("popular", "4"), ("all", "8")]
    assert [cell.split()[0] for cell in rows[2].split("  ") if "[" in cell] == [
        "0.500",
        "0.400",
        "0.667",
        "0.500",
        "0.625",
    ]
    assert rows[2].count("[") == 5 and found["all"].accuracy.with_interval in rows[2]


def test_scores_without_a_positive_are_unknown() -> None:
    never = pope(["No", "No"], ["yes", "no"])["all"]
    assert math.isnan(never.precision.value) and never.precision.count == 0
    assert (never.recall.value, never.f1.value, never.yes_ratio.value) == (0.0, 0.0, 0.0)
    neither = pope(["No"], ["no"])["all"]
    assert math.isnan(neither.recall.value) and math.isnan(neither.f1.value)


def test_what_is_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="labels: needs yes or no, got 'maybe' at 1"):
        pope(["No", "No"], ["yes", "maybe"])
    with pytest.raises(ValueError, match=r"need lists of one length above 0, got \{'answers': 1, 'labels': 2\}"):
        pope(["No"], ["yes", "no"])
    with pytest.raises(ValueError, match="splits: needs other names than 'all'"):
        pope(["No", "No"], ["yes", "no"], splits=["random", "all"])
    with pytest.raises(TypeError, match="answers: needs strings, got None at 1"):
        pope(["No", None], ["yes", "no"])
    with pytest.raises(ValueError, match="answers: needs a list of strings, got the string 'No'"):
        pope("No", ["yes", "no"])


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return path


QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a snowboard in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"},
]


@pytest.mark.parametrize(
    "answers",
    [
        [{"question": "Is there a snowboard in the image?", "answer": "Yes"}, {"question": "…", "answer": "No."}],
        [{"question_id": 1, "prompt": "…", "text": "Yes"}, {"question_id": 2, "prompt": "…", "text": "No."}],
    ],
)
def test_published_layouts_are_read(tmp_path: Path, answers: list[dict]) -> None:
    items = read_pope(write(tmp_path / "q", *QUESTIONS), write(tmp_path / "a", *answers))
    assert items == PopeItems(["Yes", "No."], ["yes", "no"], ["a.jpg", "a.jpg"])
    assert pope(*items)["all"].accuracy.value == 1.0


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    questions, answer = write(tmp_path / "q", *QUESTIONS), {"answer": "Yes"}
    with pytest.raises(ValueError, match="answers: needs one for each of 2 questions, got 1"):
        read_pope(questions, write(tmp_path / "a", answer))
    with pytest.raises(ValueError, match=r"needs a column answer or text, row 2 has \['reply'\]"):
        read_pope(questions, write(tmp_path / "a", answer, {"reply": "No"}))
    with pytest.raises(ValueError, match="answers: needs the order of the questions, row 1 is 2, not 1"):
        read_pope(questions, write(tmp_path / "a", *({"question_id": n, "answer": "No"} for n in (2, 1))))
    unlabelled = write(tmp_path / "u", *({"image": "a.jpg"} for _ in range(2)))
    with pytest.raises(ValueError, match=r"u: needs a column label, row 1 has \['image'\]"):
        read_pope(unlabelled, write(tmp_path / "a", answer, answer))
    (tmp_path / "broken").write_text('{"answer": "Yes"}\n{"answer"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="one JSON object a line, line 2 is none"):
        read_pope(questions, tmp_path / "broken")
    (tmp_path / "list").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="one JSON object a line, got list in line 1"):
        read_pope(questions, tmp_path / "list")
