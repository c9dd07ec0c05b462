"""Shards: what is written is what others read."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from helpers.pair_runs import QUICK, loaded, shared_words, small_shards, write_scenes
from PIL import Image

from mmbdhs import BDHSSample
from mmbdhs.pairs import sample_dataset
from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.shards import (
    Dropped,
    read_columns,
    read_footer,
    shard_paths,
    shard_row,
    shard_schema,
    storable_prompt,
    write_shard,
)

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("shards")
    scenes = write_scenes(here / "scenes", 6)
    sample_dataset(*loaded(), scenes, here / "run", QUICK, shared_words, small_shards(4), progress=False)
    return here


def test_datasets_loads_the_folder_with_its_images(folder: Path) -> None:
    data = datasets.load_dataset(str(folder / "run"), split="train", cache_dir=str(folder / "cache"))
    assert len(data) == 6
    for number, row in enumerate(data):
        (image,) = row["images"]
        written = Image.open(folder / f"scenes/images/{number}.png")
        assert image.tobytes() == written.convert(image.mode).tobytes()
        kinds = [part["type"] for part in row["prompt"][0]["content"]]
        assert (
            kinds == ["image", "text"]
            and [row[name][0]["role"] for name in ("chosen", "rejected")] == ["assistant"] * 2
        )
        assert row["chosen"] != row["rejected"] and row["id"] == f"scene-{number}"


def test_images_are_stored_as_they_were_or_by_their_paths(folder: Path, tmp_path: Path) -> None:
    original = (folder / "scenes/images/0.png").read_bytes()
    (row, *_) = read_columns(shard_paths(folder / "run")[0], ["images"])
    assert row["images"] == [{"bytes": original, "path": "0.png"}]
    settings = small_shards(4, embed_images=False)
    sample_dataset(*loaded(), folder / "scenes/scenes.jsonl", tmp_path / "run", QUICK, shared_words, settings, False)
    (row, *_) = read_columns(shard_paths(tmp_path / "run")[0], ["images"])
    assert row["images"] == [{"bytes": None, "path": str(folder / "scenes/images/0.png")}]


def sample(**changes: Any) -> BDHSSample:
    values = {"key": 7, "rejected": "A dog.", "similarity": 0.25, "iterations": 2, "guided": False}
    return BDHSSample(**values | {"visible_image_tokens": (1, 5), "response_ids": (3, 4)} | changes)


def written(path: Path, record: dict[str, Any], one: BDHSSample, **arguments: Any) -> dict[str, Any]:
    """A pair that is written and read again."""
    rows = [shard_row(record, 3, one, 2**64 - 1, embed=True)]
    write_shard(path, shard_schema(record), rows, arguments.get("dropped", []), arguments.get("figures", Figures()))
    (row,) = read_columns(path, [name for name in shard_schema(record).names if name != "images"])
    return row


def test_every_column_comes_back(tmp_path: Path) -> None:
    record = {"images": [Image.new("RGB", (4, 4))], "prompt": "What?", "chosen": "A cat.", "id": "a"}
    row = written(tmp_path / "shard.parquet", record, sample(noise_steps=500, noise_range="clip"))
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = {
        name: [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        for name, text in (("chosen", "A cat."), ("rejected", "A dog."))
    }
    assert row == answer | {
        "prompt": [{"role": "user", "content": content}],
        "key": "7",
        "address": 7,
        "row": 3,
        "id": "a",
        "seed": 2**64 - 1,
        "similarity": 0.25,
        "iterations": 2,
        "guided": False,
        "image_tokens": row["image_tokens"],
        "image_grids": None,
        "visible_image_tokens": [1, 5],
        "sentences": [],
        "response_ids": [3, 4],
        "noise_steps": 500,
        "noise_range": "clip",
        "pair_faults": row["pair_faults"],
    }


def test_tools_are_a_column_where_the_source_has_them(tmp_path: Path) -> None:
    record = {"images": [Image.new("RGB", (4, 4))], "prompt": "What?", "chosen": "A cat."}
    assert "tools" not in shard_schema(record).names
    tools = [{"type": "function", "function": {"name": "look"}}]
    row = written(tmp_path / "shard.parquet", record | {"tools": tools}, sample())
    assert json.loads(row["tools"]) == tools


def test_a_shard_says_what_became_of_every_example(tmp_path: Path) -> None:
    record = {"images": [Image.new("RGB", (4, 4))], "prompt": "What?", "chosen": "A cat."}
    dropped = [Dropped(4, 4, "b", "failed", "no image"), Dropped(5, 5, None, "identical", "the same", "A cat.")]
    figures = Figures()
    figures.add_response(sample(), threshold=0.97)
    figures.add_pair("A cat.", sample())
    figures.add_dropped("failed")
    path = tmp_path / "shard.parquet"
    written(path, record, sample(), dropped=dropped, figures=figures)
    assert read_footer(path)[0] == dropped and read_footer(path)[1].rows() == figures.rows()


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_another_file_is_no_shard(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train-00000.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="needs a shard of pairs, got another file"):
        read_footer(tmp_path / "train-00000.parquet")


def test_a_prompt_that_the_columns_cannot_hold_is_refused() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]}
    prompt = [{"role": "user", "content": [{"type": "image"}]}, call, {"role": "user", "content": "And?"}]
    with pytest.raises(ValueError, match="needs messages of role and content alone, got tool_calls too"):
        storable_prompt({"images": [Image.new("RGB", (4, 4))], "prompt": prompt})


def test_figures_add_up() -> None:
    """Ten pairs by hand: similarities .05 … .95, accepted below .5 in iterations 1 and 2."""
    total = Figures()
    for number in range(10):
        part = Figures()
        one = sample(similarity=number / 10 + 0.05, iterations=1 + number % 2, rejected="w " * number)
        part.add_response(one, 0.5)
        part.add_pair("a b c", one)
        total += part
    total.add_dropped("failed")
    assert (total.pairs, total.examples) == (10, 11)
    assert total.accepted(3) == [0.3, 0.5, 0.5]  # .05, .25, .45 after one; also .15, .35 after two
    assert total.of("accepted") == {0: 5, 1: 3, 2: 2}
    assert [total.quantile("rejected_words", share) for share in (0.1, 0.5, 1.0)] == [0, 4, 9]
    assert total.quantile("chosen_words", 0.5) == 3 and total.of("guided") == {0: 10}
    assert Figures(json.loads(json.dumps(total.rows()))).rows() == total.rows()
    assert Figures().accepted(2) == [0, 0] and isnan(Figures().quantile("similarity", 0.5))
