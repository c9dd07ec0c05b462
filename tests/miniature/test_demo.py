"""The demo writes what it says, and its figures have the shape they should have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmbdhs.cli import main
from mmbdhs.data import load_images, read_records
from mmbdhs.miniature.demo import highlight
from mmbdhs.sampling import Piece


def test_demo_writes_pairs_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--pairs", "6"]) == 0
    records = read_records(tmp_path / "out/data")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert len(records) == shown.count("rejected") == 6 and shown.count("[[") >= 6
    for record in records:
        chosen, rejected = (record[name][0]["content"][0]["text"] for name in ("chosen", "rejected"))
        assert chosen != rejected and chosen in shown and json.dumps(chosen)[1:-1] in page
        assert [image.size for image in load_images(record["images"])] == [(96, 96)]


def test_a_folder_with_another_demo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--out", str(tmp_path), "--pairs", "1"]) == 0
    assert main(["demo", "--out", str(tmp_path), "--pairs", "2"]) == 1
    assert "mmbdhs demo: " in capsys.readouterr().err


def test_colour_and_its_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Piece("The cat is ", False), Piece("red", True), Piece(".", False)]
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert highlight(found) == "The cat is \033[1;31mred\033[0m."
    assert highlight(found, color=False) == "The cat is [[red]]."
    monkeypatch.setenv("NO_COLOR", "1")
    assert highlight(found) == highlight(found, color=False)


def test_hiding_the_image_makes_the_miniature_hallucinate(capsys: pytest.CaptureFixture) -> None:
    """100 captions, about 500 sentences: a difference of 0.1 between shares is more than three standard errors."""
    assert main(["demo", "--stats", "100"]) == 0
    rows = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [0.0, 0.5, 0.9, 0.99, 1.0]
    sentences = [row[2] for row in rows]
    assert sentences[3] > sentences[1] + 0.1 and sentences[1] > sentences[0] - 0.1
    assert rows[3][1] > rows[0][1]
