"""A small benchmark of the miniature's scenes, with and without a judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmbdhs.evaluation import JudgeRequest, Outcome, Question
from mmbdhs.miniature.language import pope_questions
from mmbdhs.miniature.world import make_scene, render

COUNT = 4  # questions about an image


@dataclass(frozen=True)
class Scenes:
    """Yes/no questions about scenes. With a judge, an answer is right where the judge says so.

    rows: (id, image, question, whether the answer is yes).
    """

    rows: tuple[tuple[str, Path, str, bool], ...]
    judged: bool = False
    name: str = "scenes"
    max_new_tokens: int = 12

    @property
    def facts(self) -> Mapping[str, str | int]:
        return {"rows": len(self.rows), "suffix": ""}

    def questions(self) -> list[Question]:
        return [Question(name, image, text) for name, image, text, _ in self.rows]

    def judge_requests(self, answers: Mapping[str, str]) -> list[JudgeRequest]:
        rows = self.rows if self.judged else ()
        return [JudgeRequest(i, f"{text} {answers[i]}", image) for i, image, text, _ in rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        assert set(answers) == {name for name, *_ in self.rows}
        right = {i: answers[i].startswith("Yes") == yes for i, _, _, yes in self.rows}
        if self.judged:
            right = {i: verdicts[i].strip() == "right" for i in right}
        return [Outcome(i, image.name, (image.stem,), {"right": (right[i], 1)}) for i, image, _, _ in self.rows]


def scenes(folder: Path, images: int = 4, judged: bool = False) -> Scenes:
    """Questions about the first scenes, interleaved: first of all images, then the second of all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        scene, path = make_scene("balanced", number), folder / f"{number}.png"
        render(scene).save(path)
        asked = pope_questions(scene, count=COUNT)
        rows += [(place, f"{number}-{place}", path, one.text, one.affirmed) for place, one in enumerate(asked)]
    return Scenes(tuple((i, path, text, yes) for _, i, path, text, yes in sorted(rows)), judged)
