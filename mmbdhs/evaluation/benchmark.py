"""What a benchmark is to its runner: questions to a model, questions to a judge, and what each answer counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Question:
    """A question to the model.

    id: of the question, unique in its benchmark.
    image: path of the image.
    text: the user's turn, with the benchmark's own suffix.
    """

    id: str
    image: Path
    text: str


@dataclass(frozen=True)
class JudgeRequest:
    """A question to the judge of an answer.

    id: of the question that was answered.
    text: the whole instruction.
    image: path of the image that the judge sees; None for a judge that only reads.
    """

    id: str
    text: str
    image: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What one answer counts. A metric is Σ numerator / Σ denominator over the questions of a group.

    id, image: of the question. Questions about one image are not independent.
    groups: names of the groups that the question belongs to besides "all", such as a split or a question type.
    counts: (numerator, denominator) by the metric's name.
    """

    id: str
    image: str
    groups: tuple[str, ...]
    counts: Mapping[str, tuple[float, float]]

    def as_row(self) -> dict[str, Any]:
        """The outcome in JSON."""
        return {"id": self.id, "image": self.image, "groups": list(self.groups), "counts": dict(self.counts)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Outcome:
        """The outcome that `as_row` gave."""
        counts = {name: (y, x) for name, (y, x) in row["counts"].items()}
        return cls(row["id"], row["image"], tuple(row["groups"]), counts)


class Unjudged:
    """Base of the benchmarks whose answers a rule scores."""

    def judge_requests(self, answers: Mapping[str, str]) -> list[JudgeRequest]:
        """None, no judge is needed."""
        return []


class Benchmark(Protocol):
    """A benchmark's published files, read and checked.

    name: as on the command line.
    max_new_tokens: the longest answer.
    facts: what a result has to state besides its numbers, such as row counts, the lemmatiser, the prompt's suffix.
    """

    @property
    def name(self) -> str: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def facts(self) -> Mapping[str, str | int]: ...

    def questions(self) -> list[Question]: ...

    def judge_requests(self, answers: Mapping[str, str]) -> list[JudgeRequest]:
        """What a judge is asked about the answers, which are by question id. Empty where no judge is needed."""

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """What each answer counts.

        answers: one to every question, by its id.
        verdicts: what the judge said, by the id of its request.
        """
