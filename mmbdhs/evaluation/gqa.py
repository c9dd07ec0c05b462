"""GQA (Hudson and Manning, CVPR 2019): questions made from scene graphs, answered in a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.evaluation.benchmark import Outcome, Question, Unjudged
from mmbdhs.evaluation.files import check_ids, read_table, require_files
from mmbdhs.evaluation.pope import SHORT_ANSWER


@dataclass(frozen=True)
class GQA(Unjudged):
    """GQA. `read` makes it.

    rows: the published balanced questions by their ids.
    images: folder of the images.
    match: "llava", where answers are lower-cased and lose full stops at the end first, as LLaVA's converter does, or
        "exact", the official rule.
    suffix: what follows each question.
    """

    name: ClassVar[str] = "gqa"
    max_new_tokens: ClassVar[int] = 128
    rows: Mapping[str, dict[str, Any]]
    images: Path
    match: str = "llava"
    suffix: str = SHORT_ANSWER

    @classmethod
    def read(cls, folder: Path, images: Path | None = None, match: str = "llava", suffix: str = SHORT_ANSWER) -> GQA:
        """Read testdev_balanced_questions.json.

        folder: of the file.
        images: folder of the images; None for images/ in `folder`.
        match, suffix: as the class takes them.

        Raises ValueError for another `match`.
        """
        if match not in ("llava", "exact"):
            raise ValueError(f"match: needs llava or exact, got {match!r}")
        path = folder / "testdev_balanced_questions.json"
        require_files(cls.name, "questions1.2.zip of cs.stanford.edu/people/dorarad/gqa/download.html", path)
        rows = read_table(path, "imageId", "question", "answer", "types")
        balanced = {i: row for i, row in rows.items() if row.get("isBalanced", True)}
        return cls(balanced, Path(images or folder / "images"), match, suffix)

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, the suffix and the rule of matching."""
        return {"rows": len(self.rows), "suffix": self.suffix, "match": self.match}

    def questions(self) -> list[Question]:
        """Every question with its suffix."""
        return [
            Question(i, self.images / f"{row['imageId']}.jpg", row["question"] + self.suffix)
            for i, row in self.rows.items()
        ]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """Whether the answer is the truth. Structural type "query" is the group open, every other the group binary."""
        check_ids("answers", answers, self.rows)
        return [
            Outcome(
                i,
                str(row["imageId"]),
                ("open" if row["types"]["structural"] == "query" else "binary",),
                {"accuracy": (self._read(answers[i]) == row["answer"], 1)},
            )
            for i, row in self.rows.items()
        ]

    def _read(self, answer: str) -> str:
        return answer.rstrip(".").lower() if self.match == "llava" else answer
