"""MM-Vet (Yu et al., arXiv 2308.02490): a judge scores open answers by the capabilities that they need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.evaluation.benchmark import JudgeRequest, Outcome, Question
from mmbdhs.evaluation.files import check_ids, read_instruction, read_table, require_files
from mmbdhs.evaluation.verdicts import share

INSTRUCTION = """\
The last row of the table has a question, its ground truth and a model's prediction. Write how correct the prediction \
is: one of the numbers 0.0 (wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 and 1.0 (right), and nothing else. \
With <AND> the prediction is right if it has every part of the ground truth, and gets the share of those that it has. \
With <OR> one of the parts is enough.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which two fruits are on the plate? | apple <AND> pear | There is a lemon. | 0.0
Which two fruits are on the plate? | apple <AND> pear | I see an apple. | 0.5
Which two fruits are on the plate? | apple <AND> pear | A pear and an apple. | 1.0
What does the sign say? | stop <OR> halt | It says "stop". | 1.0
What does the man hold, and why? | He holds an umbrella because it rains. | The man has an umbrella. | 0.6
"""
"""The library's own judge instruction, of the same content as the published one but with other examples; results of
the two do not compare."""


@dataclass(frozen=True)
class MMVet:
    """MM-Vet. `read` makes it.

    rows: the published questions by their ids.
    images: folder of the images.
    instruction: of the judge, which the row to score follows.
    instruction_from: whose instruction it is.
    """

    name: ClassVar[str] = "mmvet"
    max_new_tokens: ClassVar[int] = 1024
    rows: Mapping[str, dict[str, Any]]
    images: Path
    instruction: str
    instruction_from: str

    @classmethod
    def read(cls, folder: Path, images: Path | None = None, instruction: str | os.PathLike[str] | None = None) -> MMVet:
        """Read mm-vet.json.

        folder: of the file.
        images: folder of the images; None for images/ in `folder`.
        instruction: file with the published instruction (`prompt` in mm-vet_evaluator.py). None: the library's own is
            used, and scores do not compare with published ones.
        """
        path = folder / "mm-vet.json"
        require_files(cls.name, "mm-vet.zip of github.com/yuweihao/MM-Vet/releases", path)
        rows = read_table(path, "imagename", "question", "answer", "capability")
        return cls(rows, Path(images or folder / "images"), *read_instruction(instruction, INSTRUCTION))

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, the suffix and the judge's instruction."""
        return {"rows": len(self.rows), "suffix": "", "instruction": self.instruction_from}

    def questions(self) -> list[Question]:
        """Every question as it is."""
        return [Question(i, self.images / row["imagename"], row["question"]) for i, row in self.rows.items()]

    def judge_requests(self, answers: Mapping[str, str]) -> list[JudgeRequest]:
        """One request for each answer."""
        check_ids("answers", answers, self.rows)
        return [JudgeRequest(i, self._asked(row, answers[i])) for i, row in self.rows.items()]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """100 times the score; a verdict that cannot be read scores 0. MM-Vet's own script asks up to five times
        first, with rising temperature."""
        check_ids("answers", answers, self.rows)
        check_ids("verdicts", verdicts, self.rows)
        return [
            Outcome(i, row["imagename"], tuple(row["capability"]), _counts(share(verdicts[i])))
            for i, row in self.rows.items()
        ]

    def _asked(self, row: Mapping[str, Any], answer: str) -> str:
        truth = row["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        return f"{self.instruction}\n{row['question']} | {truth} | {answer} | "


def _counts(score: float | None) -> dict[str, tuple[float, float]]:
    return {"score": (100 * (score or 0.0), 1), "unreadable": (score is None, 1)}
