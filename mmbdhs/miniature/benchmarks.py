"""Balanced scenes as the files of POPE and CHAIR, so that the evaluator runs where nothing can be downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbdhs.data import write_jsonl, write_whole
from mmbdhs.miniature.kinds import KINDS
from mmbdhs.miniature.language import CAPTION_PROMPT, caption, pope_questions
from mmbdhs.miniature.world import Scene, make_scene, render

BENCHMARK_OPTIONS: Mapping[str, Mapping[str, Any]] = {"pope": {"suffix": ""}, "chair": {"prompt": CAPTION_PROMPT}}
"""The options with which `mmbdhs.evaluation.read_benchmark` reads the files, by benchmark: the miniature knows other
prompts than the published ones."""

_SPLITS = ("random", "popular", "adversarial")
_QUESTIONS = 6  # of an image in a split, as in POPE


def write_benchmarks(folder: str | os.PathLike[str], images: int = 50) -> Path:
    """Write scenes as the files of POPE and CHAIR, unless they are there. Returns the folder.

    folder: gets folders pope and chair.
    images: how many scenes.
    """
    folder, scenes = Path(folder), [make_scene("balanced", index) for index in range(images)]
    for scene in scenes:
        _draw(scene, [folder / name / "images" / _file(scene) for name in ("pope", "chair")])
    for split in _SPLITS:
        write_jsonl(folder / "pope" / f"coco_pope_{split}.json", _questions(scenes, split))
    _write_chair(folder / "chair", scenes)
    return folder


def _draw(scene: Scene, paths: Sequence[Path]) -> None:
    """Draw the scene once for those of the files that are not there."""
    if missing := [path for path in paths if not path.exists()]:
        image = render(scene)
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def _file(scene: Scene) -> str:
    return f"{scene.world}-{scene.index:04}.png"


def _questions(scenes: Sequence[Scene], split: str) -> list[dict[str, Any]]:
    asked = [(_file(scene), one) for scene in scenes for one in pope_questions(scene, split, _QUESTIONS)]
    return [
        {"question_id": number, "image": image, "text": one.text, "label": "yes" if one.affirmed else "no"}
        for number, (image, one) in enumerate(asked, start=1)
    ]


def _write_chair(folder: Path, scenes: Sequence[Scene]) -> None:
    images = [{"id": scene.index, "file_name": _file(scene)} for scene in scenes]
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS)]
    things = [
        {"image_id": scene.index, "category_id": KINDS.index(thing.kind)} for scene in scenes for thing in scene.things
    ]
    captions = [{"image_id": scene.index, "caption": caption(scene)} for scene in scenes]
    instances = {"images": images, "categories": categories, "annotations": things}
    for name, content in (("instances", instances), ("captions", {"images": images, "annotations": captions})):
        write_whole(folder / f"{name}_miniature.json", [json.dumps(content).encode()])
    write_whole(folder / "synonyms.txt", ["\n".join(KINDS).encode() + b"\n"])
