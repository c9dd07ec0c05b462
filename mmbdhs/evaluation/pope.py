"""POPE, Polling-based Object Probing Evaluation (Li et al., arXiv 2305.10355): is there a … in the image?"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from mmbdhs.data import read_jsonl
from mmbdhs.evaluation.benchmark import Outcome, Question, Unjudged
from mmbdhs.evaluation.files import check_ids, check_unique, column, read_rows, require_files
from mmbdhs.evaluation.intervals import Estimate, ratios
from mmbdhs.evaluation.results import Result, check_lengths, check_texts, text_table

_LABELS = {"yes": True, "no": False}
_ALL = "all"
SPLITS = ("random", "popular", "adversarial")
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What LLaVA's scripts write after a question that is answered in a word."""


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
        return text_table(table)


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


def binary_counts(said: bool, truth: bool) -> dict[str, tuple[float, float]]:
    """What an answer counts in each metric of a yes/no question, as (numerator, denominator).

    said, truth: whether the answer and the label are the positive class.
    """
    hit = said and truth
    return {
        "accuracy": (said == truth, 1),
        "precision": (hit, said),
        "recall": (hit, truth),
        "f1": (2 * hit, said + truth),  # 2 TP / (2 TP + FP + FN)
        "yes_ratio": (said, 1),
    }


def _score(rows: list[tuple[bool, bool, Hashable]]) -> PopeResult:
    counts = [binary_counts(said, truth) for said, truth, _ in rows]
    return PopeResult(**ratios(counts, [image for *_, image in rows]), rows=len(rows))


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


@dataclass(frozen=True)
class Pope(Unjudged):
    """POPE as a benchmark. `read` makes it.

    rows: (split, question id, image, text, label) of each question. Its id is split/question id.
    images: folder of the images.
    suffix: what follows each question.
    """

    name: ClassVar[str] = "pope"
    max_new_tokens: ClassVar[int] = 16
    rows: tuple[tuple[str, str, str, str, bool], ...]
    images: Path
    suffix: str = SHORT_ANSWER

    @classmethod
    def read(
        cls, folder: Path, images: Path | None = None, splits: Sequence[str] = SPLITS, suffix: str = SHORT_ANSWER
    ) -> Pope:
        """Read coco_pope_{split}.json (or .jsonl) of each split.

        folder: of the files.
        images: folder of COCO's val2014; None for images/ in `folder`.
        splits: of random, popular and adversarial.
        suffix: what follows each question.

        Raises FileNotFoundError for missing files, ValueError for files of another layout and labels other than yes/no.
        """
        paths = {split: folder / f"coco_pope_{split}.json*" for split in splits}
        require_files(cls.name, "output/coco/ of github.com/RUCAIBox/POPE", *paths.values())
        rows = [row for split, path in paths.items() for row in _split_rows(split, next(folder.glob(path.name)))]
        return cls(tuple(rows), Path(images or folder / "images"), suffix)

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The suffix, the positive class and the number of rows of each split."""
        splits = [split for split, *_ in self.rows]
        counts = {f"rows_{split}": splits.count(split) for split in dict.fromkeys(splits)}
        return {"suffix": self.suffix, "positive": "yes", **counts}

    def questions(self) -> list[Question]:
        """Every question with its suffix."""
        return [Question(f"{s}/{i}", self.images / image, text + self.suffix) for s, i, image, text, _ in self.rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """The counts of `pope` for each answer, in the group of its split."""
        check_ids("answers", answers, [f"{split}/{number}" for split, number, *_ in self.rows])
        return [
            Outcome(f"{s}/{i}", image, (s,), binary_counts(parse_answer(answers[f"{s}/{i}"]), label))
            for s, i, image, _, label in self.rows
        ]


def _split_rows(split: str, path: Path) -> list[tuple[str, str, str, str, bool]]:
    rows = read_rows(path, "question_id", "image", "text", "label")
    check_unique(path, [row["question_id"] for row in rows])
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["label"], str) or row["label"] not in _LABELS:
            raise ValueError(f"{path}: needs the label yes or no, row {number} has {row['label']!r}")
    return [(split, str(r["question_id"]), r["image"], r["text"], _LABELS[r["label"]]) for r in rows]
