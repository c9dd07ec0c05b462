"""LLaVA-Bench (In-the-Wild) (Liu et al., arXiv 2304.08485): a judge compares answers with those of GPT-4."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.evaluation.benchmark import JudgeRequest, Outcome, Question
from mmbdhs.evaluation.files import (
    OWN_INSTRUCTION,
    check_ids,
    check_unique,
    given_instruction,
    read_json,
    read_rows,
    require_files,
)
from mmbdhs.evaluation.verdicts import two_scores

INSTRUCTION = """\
Two assistants have answered a question of a user who sees an image. The context above describes the image in a few \
sentences. Rate how helpful, relevant, accurate and detailed each answer is, with one score from 1 to 10 for each \
assistant; a higher score is better. The order in which the answers stand must not influence you.
Write only the two scores on the first line, that of Assistant 1 first, with a space between them. Explain your scores \
on the lines that follow."""
"""The library's own judge instruction, of the same content as the published one; results of the two do not compare."""

_UNREADABLE = (-1.0, -1.0)


@dataclass(frozen=True)
class LlavaBench:
    """LLaVA-Bench (In-the-Wild). `read` makes it.

    rows: the published questions.
    contexts: the description of each image.
    references: GPT-4's answer to each question, by its id.
    images: folder of the images.
    rules: (role, prompt) of the judge by the question's category.
    instruction_from: whose instruction the judge gets.
    """

    name: ClassVar[str] = "llava_bench"
    max_new_tokens: ClassVar[int] = 1024
    rows: tuple[dict[str, Any], ...]
    contexts: Mapping[str, str]
    references: Mapping[str, str]
    images: Path
    rules: Mapping[str, tuple[str, str]]
    instruction_from: str

    @classmethod
    def read(
        cls, folder: Path, images: Path | None = None, instruction: str | os.PathLike[str] | None = None
    ) -> LlavaBench:
        """Read questions.jsonl, context.jsonl and answers_gpt4.jsonl.

        folder: of the files.
        images: folder of the images; None for images/ in `folder`.
        instruction: LLaVA's llava/eval/table/rule.json, the published instruction; None for rule.json in `folder`. If
            there is none, the library's own is used, and scores do not compare with published ones.
        """
        paths = [folder / f"{name}.jsonl" for name in ("questions", "context", "answers_gpt4")]
        require_files(cls.name, "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild", *paths)
        rows = read_rows(paths[0], "question_id", "image", "text", "category")
        check_unique(paths[0], [row["question_id"] for row in rows])
        contexts = {row["image"]: _lines(row["caption"]) for row in read_rows(paths[1], "image", "caption")}
        references = {str(row["question_id"]): row["text"] for row in read_rows(paths[2], "question_id", "text")}
        check_ids("answers_gpt4.jsonl", references, [str(row["question_id"]) for row in rows])
        if lacking := {row["image"] for row in rows} - set(contexts):
            raise ValueError(f"{paths[1]}: needs a row for each image, lacks {sorted(lacking)}")
        rules, source = _rules(
            instruction or folder / "rule.json", {row["category"] for row in rows}, bool(instruction)
        )
        return cls(tuple(rows), contexts, references, Path(images or folder / "images"), rules, source)

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, the suffix and the judge's instruction."""
        return {"rows": len(self.rows), "suffix": "", "instruction": self.instruction_from}

    def questions(self) -> list[Question]:
        """Every question as it is."""
        return [Question(str(row["question_id"]), self.images / row["image"], row["text"]) for row in self.rows]

    def judge_requests(self, answers: Mapping[str, str]) -> list[JudgeRequest]:
        """One request for each answer. GPT-4's answer is the first of the two."""
        check_ids("answers", answers, [str(row["question_id"]) for row in self.rows])
        return [JudgeRequest(i := str(row["question_id"]), self._asked(row, answers[i])) for row in self.rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """100 · Σ model / Σ reference; the scores of a verdict that cannot be read are −1 and −1, as in LLaVA."""
        ids = [str(row["question_id"]) for row in self.rows]
        check_ids("answers", answers, ids)
        check_ids("verdicts", verdicts, ids)
        return [
            Outcome(i, row["image"], (row["category"],), review_counts(verdicts[i]))
            for i, row in zip(ids, self.rows, strict=True)
        ]

    def _asked(self, row: Mapping[str, Any], answer: str) -> str:
        role, prompt = self.rules[row["category"]]
        texts = (self.references[str(row["question_id"])], answer)
        said = "".join(f"[{role} {n}]\n{text}\n\n[End of {role} {n}]\n\n" for n, text in enumerate(texts, start=1))
        return f"[Context]\n{self.contexts[row['image']]}\n\n[Question]\n{row['text']}\n\n{said}[System]\n{prompt}\n\n"


def review_counts(verdict: str) -> dict[str, tuple[float, float]]:
    """What a review counts: the score in percent of the reference's, both mean scores, and whether it is unreadable."""
    scores = two_scores(verdict)
    reference, model = scores or _UNREADABLE
    counts = {"score": (100 * model, reference), "model": (model, 1.0), "reference": (reference, 1.0)}
    return {**counts, "unreadable": (float(scores is None), 1.0)}


def _lines(caption: str | list[str]) -> str:
    return caption if isinstance(caption, str) else "\n".join(caption)


def _rules(path: str | os.PathLike[str], categories: set[str], given: bool) -> tuple[dict[str, tuple[str, str]], str]:
    if not given and not Path(path).exists():
        return dict.fromkeys(categories, ("Assistant", INSTRUCTION)), OWN_INSTRUCTION
    rules = read_json(Path(path))
    keys = {category: f"llava_bench_{category}" for category in categories}
    if missing := sorted(key for key in keys.values() if key not in rules):
        raise ValueError(f"{path}: needs the rules {', '.join(missing)}, got {sorted(rules)}")
    found = {category: (rules[key]["role"], rules[key]["prompt"]) for category, key in keys.items()}
    return found, given_instruction(path)
