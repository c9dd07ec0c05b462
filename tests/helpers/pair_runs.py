"""Runs over small data sets of the miniature's world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmbdhs import BDHSConfig, miniature
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.pairs import DatasetConfig

QUICK = BDHSConfig(max_iterations=2, max_new_tokens=24)


@cache
def loaded() -> tuple[Any, Any]:
    """The miniature and its processor, which nobody may change."""
    return miniature.load()


def write_scenes(folder: Path, count: int) -> Path:
    """A JSONL file of captioned scenes in TRL's layout, with a column id, and their images."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        scene = make_scene("balanced", number)
        render(scene).save(folder / f"images/{number}.png")
        rows.append({"images": [f"images/{number}.png"], "prompt": CAPTION_PROMPT, "chosen": caption(scene)})
    text = "".join(json.dumps(row | {"id": f"scene-{number}"}) + "\n" for number, row in enumerate(rows))
    (folder / "scenes.jsonl").write_text(text)
    return folder / "scenes.jsonl"


def shared_words(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A similarity that needs no model: the share of words that both texts have."""
    pairs = [(set(one.split()), set(other.split())) for one, other in zip(first, second, strict=True)]
    return [len(one & other) / len(one | other) for one, other in pairs]


def small_shards(size: int = 5, **settings: Any) -> DatasetConfig:
    """Settings of a run with small shards."""
    return DatasetConfig(shard_size=size, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differing_files(whole: Path, cut: Path) -> list[str]:
    """The files of two runs that differ or that one of them lacks."""
    one, other = contents(whole), contents(cut)
    return sorted(f"{cut}: {name}" for name in one.keys() | other.keys() if one.get(name) != other.get(name))
