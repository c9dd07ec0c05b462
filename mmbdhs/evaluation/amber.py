"""The yes/no questions of AMBER (Wang et al., arXiv 2311.07397) about existence, attributes and relations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmbdhs.evaluation.benchmark import Outcome, Question, Unjudged
from mmbdhs.evaluation.files import check_ids, check_unique, read_rows, require_files
from mmbdhs.evaluation.pope import SHORT_ANSWER, binary_counts

GROUPS: Mapping[str, tuple[str, ...]] = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
"""The groups of a question by its type in annotations.json."""


@dataclass(frozen=True)
class Amber(Unjudged):
    """AMBER's yes/no questions. `read` makes it.

    rows: (id, image, question, type, whether the truth is yes) of each question.
    images: folder of the images.
    match: "exact", the published rule, by which only the texts "Yes" and "No" are answers, or "first_word", which reads
        the first word without its punctuation and case.
    suffix: what follows each question.
    """

    name: ClassVar[str] = "amber"
    max_new_tokens: ClassVar[int] = 16
    rows: tuple[tuple[str, str, str, str, bool], ...]
    images: Path
    match: str = "exact"
    suffix: str = SHORT_ANSWER

    @classmethod
    def read(cls, folder: Path, images: Path | None = None, match: str = "exact", suffix: str = SHORT_ANSWER) -> Amber:
        """Read query/query_discriminative.json and annotations.json.

        folder: AMBER's folder data/.
        images: folder of the images; None for images/ in `folder`.
        match, suffix: as the class takes them.

        Raises ValueError for another `match`, other truths than yes and no, and questions without a truth.
        """
        if match not in ("exact", "first_word"):
            raise ValueError(f"match: needs exact or first_word, got {match!r}")
        asked, known = folder / "query" / "query_discriminative.json", folder / "annotations.json"
        require_files(cls.name, "data/ of github.com/junyangwang0410/AMBER", asked, known)
        queries, truths = read_rows(asked, "id", "image", "query"), read_rows(known, "id", "type", "truth")
        check_unique(asked, [row["id"] for row in queries])
        check_unique(known, [row["id"] for row in truths])
        by_id = {row["id"]: row for row in truths}
        if lacking := [row["id"] for row in queries if row["id"] not in by_id]:
            raise ValueError(f"{known}: needs a truth for each question, lacks {len(lacking)}, such as {lacking[0]}")
        for row in queries:
            found = by_id[row["id"]]
            if found["truth"] not in ("yes", "no") or found["type"] not in GROUPS:
                raise ValueError(f"{known}: needs the truth yes or no and a type of {', '.join(GROUPS)}, got {found}")
        kinds = [(by_id[row["id"]]["type"], by_id[row["id"]]["truth"] == "yes") for row in queries]
        rows = [(str(r["id"]), r["image"], r["query"], *kind) for r, kind in zip(queries, kinds, strict=True)]
        return cls(tuple(rows), Path(images or folder / "images"), match, suffix)

    @property
    def facts(self) -> Mapping[str, str | int]:
        """The number of rows, the suffix, the positive class and the rule of reading answers."""
        return {"rows": len(self.rows), "suffix": self.suffix, "positive": "no", "match": self.match}

    def questions(self) -> list[Question]:
        """Every question with its suffix."""
        return [Question(i, self.images / image, text + self.suffix) for i, image, text, *_ in self.rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        """The counts of a yes/no question with "No" as the positive class. Any other text than an answer is wrong."""
        check_ids("answers", answers, [i for i, *_ in self.rows])
        return [Outcome(i, image, GROUPS[kind], self._counts(answers[i], yes)) for i, image, _, kind, yes in self.rows]

    def _counts(self, answer: str, yes: bool) -> dict[str, tuple[float, float]]:
        said = answer if self.match == "exact" else (answer.split() or [""])[0].strip(".,!;:").capitalize()
        counts = binary_counts(said == "No", not yes)
        del counts["yes_ratio"]
        right = said == ("Yes" if yes else "No")
        return {**counts, "accuracy": (right, 1), "unreadable": (said not in ("Yes", "No"), 1)}
