"""How the alignment benchmark judges: `mmbdhs.evaluation` over scenes without priors, whose every fact is known."""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from mmbdhs.evaluation import Benchmark, ObjectVocabulary, Outcome, Question, evaluate
from mmbdhs.evaluation.benchmark import Unjudged
from mmbdhs.evaluation.coco_captions import Captioned, Chair
from mmbdhs.evaluation.compare import StoredRun
from mmbdhs.evaluation.pope import SPLITS, Pope
from mmbdhs.miniature.kinds import KINDS
from mmbdhs.miniature.language import CAPTION_PROMPT, colour_question, mentions, pope_questions, wrong_mentions
from mmbdhs.miniature.world import Scene, make_scene, render
from mmbdhs.sampling import SamplingConfig

JUDGE_SEED = 900  # of scenes
POPE_QUESTIONS, COLOUR_QUESTIONS = 8, 2  # of an image, those of POPE in each split
VOCABULARY = ObjectVocabulary.build([[kind] for kind in KINDS])


@dataclass(frozen=True)
class Captions(Chair):
    """CHAIR, and what is false in a caption besides: wrong colours, and wrong claims, which are both together."""

    scenes: tuple[Scene, ...]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        found = super().outcomes(answers, verdicts)
        return [self._counted(*pair, answers) for pair in zip(found, self.scenes, strict=True)]

    def _counted(self, found: Outcome, scene: Scene, answers: Mapping[str, str]) -> Outcome:
        colours = sum(one.error == "colour" for one in wrong_mentions(answers[found.id], scene))
        objects, named = found.counts["chair_i"]
        more = {"wrong": (objects + colours, named), "colours": (colours, named)}
        return replace(found, counts={**found.counts, **more})


@dataclass(frozen=True)
class Colours(Unjudged):
    """Questions about the colours of things that are there: their ids, images, kinds and colours."""

    name: ClassVar[str] = "colours"
    max_new_tokens: ClassVar[int] = 16
    facts: ClassVar[Mapping[str, str | int]] = {}
    rows: tuple[tuple[str, Path, str, str], ...]

    def questions(self) -> list[Question]:
        return [Question(name, image, colour_question(kind, colour).text) for name, image, kind, colour in self.rows]

    def outcomes(self, answers: Mapping[str, str], verdicts: Mapping[str, str]) -> list[Outcome]:
        return [
            Outcome(name, image.name, (), {"accuracy": (_says(answers[name], kind, colour), 1)})
            for name, image, kind, colour in self.rows
        ]


def _says(answer: str, kind: str, colour: str) -> bool:
    return any((claim.kind, claim.colour) == (kind, colour) for claim in mentions(answer))


@functools.cache
def _drawn(world: str, count: int) -> tuple[tempfile.TemporaryDirectory[str], tuple[Scene, ...]]:
    """Scenes, and a folder with their pictures that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory()
    scenes = tuple(make_scene(world, index, JUDGE_SEED) for index in range(count))
    for scene in scenes:
        render(scene).save(Path(folder.name) / _file(scene))
    return folder, scenes


def _file(scene: Scene) -> str:
    return f"{scene.index:04}.png"


def judge(model: Any, processor: Any, world: str, count: int, seed: int) -> list[Outcome]:
    """What a model's answers about `count` scenes count, one outcome for each image.

    world: "validation" or "balanced".
    seed: of the sampled captions.

    The names of metrics begin with what was asked: "greedy" and "sampled" captions, "colours", and the splits of POPE.
    """
    folder, scenes = _drawn(world, count)
    images = Path(folder.name)
    captions, greedy = _captions(scenes, images), SamplingConfig(temperature=0, max_new_tokens=64, max_branches=16)
    runs: dict[str, tuple[Benchmark, SamplingConfig]] = {
        "greedy": (captions, greedy),
        "sampled": (captions, SamplingConfig(seed=seed, max_new_tokens=64, max_branches=16)),
        "colours": (_colours(scenes, images), replace(greedy, max_new_tokens=8, max_branches=64)),
        "pope": (_pope(scenes, images), replace(greedy, max_new_tokens=2, max_branches=64)),  # the first word decides
    }
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as output:
        for name, (benchmark, config) in runs.items():
            asked = {"output_dir": Path(output) / name, "config": config, "progress": False}
            run = evaluate(model, processor, benchmark, **asked)
            for outcome in StoredRun.read(run.folder).outcomes:
                _add(found[outcome.image], outcome, outcome.groups or (name,))
    return [Outcome(image, image, (), counts) for image, counts in sorted(found.items())]


def _add(counts: dict[str, tuple[float, float]], outcome: Outcome, prefixes: Sequence[str]) -> None:
    for prefix, (metric, (y, x)) in product(prefixes, outcome.counts.items()):
        before = counts.get(f"{prefix} {metric}", (0, 0))
        counts[f"{prefix} {metric}"] = before[0] + y, before[1] + x


def _captions(scenes: Sequence[Scene], images: Path) -> Captions:
    rows = [
        Captioned(
            str(scene.index), images / _file(scene), CAPTION_PROMPT, frozenset(thing.kind for thing in scene.things), ()
        )
        for scene in scenes
    ]
    return Captions(tuple(rows), VOCABULARY, None, tuple(scenes))


def _colours(scenes: Sequence[Scene], images: Path) -> Colours:
    asked = [(scene, thing) for scene in scenes for thing in scene.things[:COLOUR_QUESTIONS]]
    rows = [(f"{scene.index}/{one.kind}", images / _file(scene), one.kind, one.colour) for scene, one in asked]
    return Colours(tuple(rows))


def _pope(scenes: Sequence[Scene], images: Path) -> Pope:
    rows = [
        (split, f"{scene.index}/{number}", _file(scene), one.text, one.affirmed)
        for split in SPLITS
        for scene in scenes
        for number, one in enumerate(pope_questions(scene, split, POPE_QUESTIONS))
    ]
    return Pope(tuple(rows), images, suffix="")
