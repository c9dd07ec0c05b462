"""The answers of a run on disk: one JSON line a question, in the order of the questions, written as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmbdhs.data import read_jsonl, sync
from mmbdhs.evaluation.benchmark import Question


class AnswerRecords:
    """A file that only grows. A last line that was cut short when a process was killed is cut off.

    path: the file.
    questions: in the order of their answers.
    answers: those that are there.

    Raises ValueError for a file with other questions or another order.
    """

    def __init__(self, path: Path, questions: Sequence[Question]) -> None:
        self._path, self._questions = path, questions
        path.touch()
        _cut_unfinished_line(path)
        rows = read_jsonl(path)
        if len(rows) > len(questions):
            raise ValueError(
                f"{path}: needs an answer to each of {len(questions)} questions, has {len(rows)} lines; choose another "
                "folder"
            )
        for number, (row, question) in enumerate(zip(rows, questions, strict=False), start=1):
            if not isinstance(row.get("answer"), str) or row.get("question_id") != question.id:
                raise ValueError(
                    f"{path}: needs the answer to question {question.id!r} in line {number}, got "
                    f"{row.get('question_id')!r}. Move the file away to answer all questions again"
                )
        self.answers: list[str] = [row["answer"] for row in rows]

    def append(self, answers: Sequence[str]) -> None:
        """Write the answers to the questions that come next."""
        following = self._questions[len(self.answers) : len(self.answers) + len(answers)]
        with open(self._path, "ab", buffering=0) as file:
            file.write(b"".join(_line(question, text) for question, text in zip(following, answers, strict=True)))
        self.answers += answers

    def by_id(self) -> dict[str, str]:
        """The answers by the ids of their questions, on the disk for good."""
        sync(self._path)
        return {question.id: answer for question, answer in zip(self._questions, self.answers, strict=True)}


def _line(question: Question, answer: str) -> bytes:
    row = {"question_id": question.id, "question": question.text, "answer": answer, "image": question.image.name}
    return json.dumps(row).encode() + b"\n"


def _cut_unfinished_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
