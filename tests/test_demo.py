"""The demo writes what it says, and its figures have the shape they should have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmbdhs.cli import main


def test_demo_writes_pairs_images_and_sheet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--pairs", "6"]) == 0
    records = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert len(records) == 6
    for record in records:
        assert record["chosen"] != record["rejected"]
        assert [Image.open(tmp_path / "out" / name).size for name in record["images"]] == [(96, 96)]
    assert Image.open(tmp_path / "out/sheet.png").width == 1400
    assert capsys.readouterr().out.count("rejected") == 6


def test_hiding_the_image_makes_the_miniature_hallucinate(capsys: pytest.CaptureFixture) -> None:
    """80 captions each: hiding 99% must add wrong mentions to what full sight gives (a difference of 0.15 is three
    standard errors)."""
    assert main(["demo", "--stats", "80"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "ρ_th" in line]
    wrong = {float(words[1]): float(words[3]) for words in lines}
    assert list(wrong) == [0.0, 0.5, 0.9, 0.99, 1.0]
    assert wrong[0.99] > wrong[0.0] + 0.15
