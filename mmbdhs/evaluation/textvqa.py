"""TextVQA (Singh et al., CVPR 2019): questions about text in images, with ten human answers each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.evaluation.benchmark import Outcome, Question, Unjudged
from mmbdhs.evaluation.files import check_columns, check_ids, check_unique, read_rows, read_sections, require_files
from mmbdhs.evaluation.pope import SHORT_ANSWER

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": 0} | {word: number for number, word in enumerate(_DIGITS)}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the original removes no more
_HUMANS = 10


def _contractions() -> dict[str, str]:
    """The words that VQA's normalisation gives their apostrophe back."""
    endings = {
        "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
        "'ve": "could might must not should would we what where who they you",
        "'d": "he how it someone something there they where who you",
        "'ll": "how it somebody someone something they what who why you",
        "'s": "he how somebody someone that there what when where who why",
        "'re": "there they what why you",
    }
    words = {s + e.replace("'", ""): s + e for e, stems in endings.items() for s in stems.split()}
    double = {"n't": "could had might should would", "'d": "he it she somebody someone something there they we who you"}
    for ending, stems in double.items():
        for stem in stems.split():
            whole = f"{stem}{ending}'ve"
            words |= {f"{stem}{ending.replace(chr(39), '')}'ve": whole, f"{stem}{ending}ve": whole}
    words |= {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "somebody'd": "somebodyd"}
    words |= dict.fromkeys(("yall'll", "y'allll"), "y'all'll")
    words |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    return words | dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")


_CONTRACTIONS = _contractions()


def normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it.

    It is lower-cased and loses commas, question marks, full stops that no digit follows, and articles. A punctuation
    mark with a space next to it anywhere in the answer is removed, any other becomes a space. Number words up to ten
    become digits, and contractions get their apostrophe back. "'s" is a word of its own.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = spaced = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in spaced or f" {mark}" in spaced else " ")
    text = _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS)
    words = [str(_NUMBERS.get(word, word)) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """The mean of min(1, matches / 3) over the ten sets of nine human answers."""
    said = normalised(answer)
    same = [normalised(human) == said for human in human_answers]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


@dataclass(frozen=True)
class TextVQA(Unjudged):
    """TextVQA's validation questions. `read` makes it.

    rows: the published questions, each with `text`, what the model is asked.
    images: folder of the images.
    suffix: what follows each question.
    prompts: the file that the model's prompts come from; empty for question and suffix.
    """

    name: ClassVar[str] = "textvqa"
    max_new_tokens: ClassVar[int] = 128
    rows: tuple[dict[str, Any], ...]
    images: Path
    suffix: str = SHORT_ANSWER
    prompts: str = ""

    @classmethod
    def read(
        cls, folder: Path, images: Path | None = None, suffix: str = SHORT_ANSWER, prompts: Path | None = None
    ) -> TextVQA:
        """Read TextVQA_0.5.1_val.json.

        folder: of the file.
        images: folder of the images; None for train_images/ in `folder`.
        suffix: what follows each question.
        prompts: LLaVA's llava_textvqa_val_v051_ocr.jsonl, whose prompts name OCR tokens and replace question and
            suffix. Results with and without OCR tokens do not compare.

        Raises ValueError for files of another layout, other than ten answers, and questions without a prompt.
        """
        path = folder / "TextVQA_0.5.1_val.json"
        require_files(cls.name, "textvqa.org/dataset (TextVQA 0.5.1, validation)", path)
        (rows,) = read_sections(path, "data")
        check_columns(path, enumerate(rows, start=1), ("question_id", "image_id", "question", "answers"))
        check_unique(path, [row["question_id"] for row in rows])
        for row in rows:
            if len(row["answers"]) != _HUMANS:
                raise ValueError(
                    f"{path}: needs ten answers a question, {row['question_id']} has {len(row['answers'])}"
                )
        texts = [row["question"] + suffix for row in rows] if prompts is None else _prompts(Path(prompts), rows)
        asked = tuple({**row, "text": text} for row, text in zip(rows, texts, strict=True))
        return cls(
            asked, Path(images or folder / "train_images"), suffix, "" if prompts is None else Path(prompts).name
        )

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, and the suffix or the file of prompts."""
        prompt = {"prompts": self.prompts} if self.prompts else {"suffix": self.suffix}
        return {"rows": len(self.rows), **prompt}

    def questions(self) -> list[Question]:
        """Every question with its suffix, or its prompt."""
        return [Question(str(r["question_id"]), self.images / f"{r['image_id']}.jpg", r["text"]) for r in self.rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """The accuracy of each answer."""
        check_ids("answers", answers, [str(row["question_id"]) for row in self.rows])
        return [
            Outcome(
                i := str(row["question_id"]),
                row["image_id"],
                (),
                {"accuracy": (accuracy(answers[i], row["answers"]), 1)},
            )
            for row in self.rows
        ]


def _prompts(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prompt of each question, which starts with the question; LLaVA's ids are those of the images."""
    given = {
        (r["question_id"], r["text"].split("\n")[0].lower()): r["text"] for r in read_rows(path, "question_id", "text")
    }
    keys = [(row["image_id"], row["question"].lower()) for row in rows]
    if lacking := [key for key in keys if key not in given]:
        raise ValueError(f"{path}: needs a prompt for each question, lacks {len(lacking)}, such as {lacking[0]}")
    return [given[key] for key in keys]
