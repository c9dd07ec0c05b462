"""A data set with broken rows: every good row is sampled and every bad one is named."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from helpers.pair_runs import loaded, small_shards

from mmbdhs import BDHSConfig
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.pairs import sample_dataset
from mmbdhs.pairs.shards import read_columns, shard_paths

pytest.importorskip("pyarrow")

ROWS, EVERY = 2000, 33  # one row in 33 is broken
QUICK = BDHSConfig(max_iterations=1, max_sentence_tokens=8)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int = 40_000) -> bytes:
    """A PNG of a few bytes that claims more pixels than any memory holds."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(bytes(1000))), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turns(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


GOOD = turns("<image>\nIs there a red car?", "Yes, there is a red car.")
BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "an image that is not there": ({"image": "gone.png"}, "failed", "a file that is there"),
    "a JPEG that is cut short": ({"image": "cut.jpg"}, "failed", "can be decoded"),
    "a decompression bomb": ({"image": "bomb.png"}, "failed", "DecompressionBomb"),
    "no image": ({"image": None}, "text_only", "text-only"),
    "an empty answer": ({"conversations": turns("<image>\nWhat?", "")}, "failed", "text"),
    "an answer of 30,000 characters": (
        {"conversations": turns("<image>\nWhat?", "A red car. " * 2728)},
        "failed",
        "model's context",
    ),
    "a number for an answer": ({"conversations": turns("<image>\nWhat?", 7)}, "failed", "text"),
    "NaN for an answer": ({"conversations": turns("<image>\nWhat?", float("nan"))}, "failed", "text"),
    "NaN for all turns": ({"conversations": float("nan")}, "failed", "conversations"),
    "the placeholder in an answer": ({"conversations": turns("<image>\nWhat?", "An <image>.")}, "failed", "<image>"),
    "two placeholders for an image": ({"conversations": turns("<image> and <image>?", "A car.")}, "failed", "image"),
    "a text in place of a row": ({}, "failed", "needs a mapping"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """A file in LLaVA-Instruct's layout, and which of its rows are broken in what way."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(20):
        render(make_scene("balanced", number)).save(folder / f"{number}.png")
    render(make_scene("balanced", 0)).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:400])
    (folder / "bomb.png").write_bytes(bomb())
    rows: list[Any] = [{"id": str(i), "image": f"{i % 20}.png", "conversations": GOOD} for i in range(ROWS)]
    broken = {row: list(BROKEN)[row // EVERY % len(BROKEN)] for row in range(5, ROWS, EVERY)}
    for row, kind in broken.items():
        rows[row] = rows[row] | BROKEN[kind][0] if BROKEN[kind][0] else "no row"
    (folder / "train.json").write_text(json.dumps(rows))
    return folder / "train.json", broken


@pytest.mark.slow
def test_good_rows_are_sampled_and_bad_ones_are_named(data: tuple[Path, dict[int, str]], tmp_path: Path) -> None:
    file, broken = data
    result = sample_dataset(
        *loaded(),
        file,
        tmp_path / "out",
        QUICK,
        lambda a, b: [0.5] * len(a),
        small_shards(500, drop_identical=False),
        False,
    )
    sampled = [row["row"] for path in shard_paths(result.folder) for row in read_columns(path, ["row"])]
    assert sampled == [row for row in range(ROWS) if row not in broken] and len(broken) == 61
    errors = [json.loads(line) for line in (result.folder / "errors.jsonl").read_text().splitlines()]
    assert [error["row"] for error in errors] == sorted(broken)
    for error in errors:
        _, kind, reason = BROKEN[broken[error["row"]]]
        assert (error["kind"], reason in error["reason"]) == (kind, True), (broken[error["row"]], error)
    assert result.figures.of("dropped") == {
        kind: sum(e["kind"] == kind for e in errors) for kind in ("failed", "text_only")
    }
