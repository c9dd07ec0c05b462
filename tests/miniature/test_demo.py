"""The demo writes what it says, and its figures have the shape they should have."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest
from PIL import Image

from mmbdhs.cli import main


def test_demo_writes_pairs_images_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--pairs", "6"]) == 0
    records = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert len(records) == 6
    for record in records:
        assert record["chosen"] != record["rejected"]
        assert [Image.open(tmp_path / "out" / name).size for name in record["images"]] == [(96, 96)]
    page = (tmp_path / "out/pairs.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 6 and all(
        escape(record["chosen"][0]["content"][0]["text"]) in page for record in records
    )
    assert capsys.readouterr().out.count("rejected") == 6


def test_hiding_the_image_makes_the_miniature_hallucinate(capsys: pytest.CaptureFixture) -> None:
    """100 captions, about 500 sentences: a difference of 0.1 between shares is more than three standard errors."""
    assert main(["demo", "--stats", "100"]) == 0
    rows = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [0.0, 0.5, 0.9, 0.99, 1.0]
    sentences = [row[2] for row in rows]
    assert sentences[3] > sentences[1] + 0.1 and sentences[1] > sentences[0] - 0.1
    assert rows[3][1] > rows[0][1]
