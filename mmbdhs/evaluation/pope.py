"""POPE, Polling-based Object Probing Evaluation (Li et al., arXiv 2305.10355): is there a … in the image?"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmbdhs.data import read_jsonl
from mmbdhs.evaluation.files import column
from mmbdhs.evaluation.intervals import Estimate, ratio
from mmbdhs.evaluation.results import Result, check_lengths, check_texts

_LABELS = {"yes": True, "no": False}
_ALL = "all"


class PopeItems(NamedTuple):
    """Answers, labels and images, one each per question; `pope(*items)` scores them."""

    answers: list[str]
    labels: list[str]
    images: list[Hashable]


@dataclass(frozen=True)
class PopeResult(Result):
    """Scores of one split, with "yes" as the positive class.

    accuracy: share of right answers.
    precision: NaN where nothing is answered yes.
    recall: NaN where nothing is labelled yes.
    f1: 0 where precision or recall is NaN, NaN where both are.
    yes_ratio: share of answers, not of labels, that are yes.
    rows: number of questions. The published random split has 2,910 in its older and 3,000 in its newer form, and
        results on the two do not compare.
    """

    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    yes_ratio: Estimate
    rows: int


class PopeResults(dict[str, PopeResult]):
    """The scores of each split by its name, and of the questions of all splits together as "all".

    Its text is a table with one row for each of them, every score with its 95% interval.
    """

    def __str__(self) -> str:
        header = ["split", *next(iter(self.values())).metrics, "rows"]
        table = [header] + [
            [split, *(score.with_interval for score in result.metrics.values()), str(result.rows)]
            for split, result in self.items()
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def parse_answer(text: str) -> bool:
    """Whether an answer means yes, by POPE's own rule.

    In the text before the first full stop, without commas and split at single spaces, a word "No", "not" or "no" means
    no. Everything else means yes, also an empty answer and "NO".
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def pope(
    answers: Sequence[str],
    labels: Sequence[str | bool],
    images: Sequence[Hashable] | None = None,
    splits: Sequence[str] | None = None,
) -> PopeResults:
    """Score answers to yes/no questions, split by split and over all splits.

    answers: what the model said.
    labels: "yes", "no" or booleans.
    images: the image of each question. Questions about one image are not independent, which widens the intervals. None
        if each question has an image of its own.
    splits: the split of each question (random, popular, adversarial). None: the only scores are those of "all".

    The scores of "all" count every question once. With three splits of one size their accuracy is the mean of the
    splits' accuracies, but their F1 is not the mean of the splits' F1.

    Raises ValueError for lists of unequal length, other labels and a split named "all", TypeError for answers that are
    not strings.
    """
    check_lengths(answers=answers, labels=labels, images=images, splits=splits)
    check_texts("answers", answers)
    check_texts("splits", splits or [])
    if splits is not None and _ALL in splits:
        raise ValueError(f"splits: needs other names than {_ALL!r}, which is all splits together, got {_ALL!r}")
    said = [parse_answer(text) for text in answers]
    truth = [_label(label, number) for number, label in enumerate(labels)]
    about = range(len(said)) if images is None else images
    rows = list(zip(said, truth, about, strict=True))
    members: dict[str, list[tuple[bool, bool, Hashable]]] = {}
    for split, row in zip([_ALL] * len(rows) if splits is None else splits, rows, strict=True):
        members.setdefault(split, []).append(row)
    return PopeResults({split: _score(found) for split, found in (members | {_ALL: rows}).items()})


def _score(rows: list[tuple[bool, bool, Hashable]]) -> PopeResult:
    said, truth, images = zip(*rows, strict=True)
    true_yes = [s and t for s, t in zip(said, truth, strict=True)]
    return PopeResult(
        accuracy=ratio([s == t for s, t in zip(said, truth, strict=True)], [1] * len(rows), images),
        precision=ratio(true_yes, said, images),
        recall=ratio(true_yes, truth, images),
        # 2 TP / (2 TP + FP + FN)
        f1=ratio([2 * hit for hit in true_yes], [s + t for s, t in zip(said, truth, strict=True)], images),
        yes_ratio=ratio(said, [1] * len(rows), images),
        rows=len(rows),
    )


def _label(label: str | bool, number: int) -> bool:
    found = _LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(found, bool):
        raise ValueError(f"labels: needs yes or no, got {label!r} at {number}")
    return found


def read_pope(questions: str | os.PathLike[str], answers: str | os.PathLike[str]) -> PopeItems:
    """Read a published split and a model's answers to it, JSON Lines in the same order.

    questions: columns image and label (POPE's coco_pope_*.json).
    answers: a column answer (POPE's own layout) or text (LLaVA's).

    Raises ValueError for missing columns, for files of unequal length, and where both files have a column question_id,
    for answers to other questions.
    """
    asked, given = read_jsonl(questions), read_jsonl(answers)
    if len(asked) != len(given):
        raise ValueError(f"answers: needs one for each of {len(asked)} questions, got {len(given)} in {answers}")
    for number, (question, answer) in enumerate(zip(asked, given, strict=True), start=1):
        ids = [row["question_id"] for row in (question, answer) if "question_id" in row]
        if len(set(ids)) > 1:
            raise ValueError(f"answers: needs the order of the questions, row {number} is {ids[1]!r}, not {ids[0]!r}")
    labels, images = (column(questions, asked, name) for name in ("label", "image"))
    return PopeItems(column(answers, given, "answer", "text"), labels, images)
