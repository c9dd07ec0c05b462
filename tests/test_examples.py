"""The scripts and the notebook of examples/ run on the miniature."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers.pair_runs import write_scenes

from mmbdhs import miniature
from mmbdhs.miniature.demo import minilm
from mmbdhs.miniature.language import CAPTION_PROMPT
from mmbdhs.miniature.world import make_scene, render

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """MiniLM in place of a model that needs a download, and a cache of `datasets` of its own."""
    monkeypatch.setattr("mmbdhs.sampling.similarity._load", lambda name: minilm())
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def run(script: str, *words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(EXAMPLES / script))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mmbdhs.sampling.similarity._load", lambda name: minilm())
        data = write_scenes(folder / "scenes", 8)
        run("sample_dataset.py", miniature.path(), data, folder / "pairs", monkeypatch=monkeypatch)
    return folder / "pairs"


def test_a_data_set_is_sampled(pairs: Path) -> None:
    assert (pairs / "report.html").is_file() and list((pairs / "data").glob("*.parquet"))


def test_pairs_train_in_trl(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    run("train_in_trl.py", miniature.path(), pairs, tmp_path / "aligned", monkeypatch=monkeypatch)
    assert (tmp_path / "aligned/adapter_model.safetensors").is_file()


def test_pairs_train_in_a_loop(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run("own_loop.py", miniature.path(), pairs, tmp_path / "aligned", monkeypatch=monkeypatch)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines[0] == "step 1: loss 0.6931, margin 0.0000" and not lines[1].endswith(" 0.0000")
    assert (tmp_path / "aligned/adapter_model.safetensors").is_file()


def test_a_model_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    rows = []
    for scene in (make_scene("balanced", number) for number in range(4)):
        render(scene).save(path := tmp_path / f"{scene.index}.png")
        row = {"id": str(scene.index), "image": str(path), "question": CAPTION_PROMPT}
        rows.append(json.dumps(row | {"word": "the" if scene.index else "nothing"}) + "\n")
    (tmp_path / "questions.jsonl").write_text("".join(rows))
    run("evaluate.py", miniature.path(), tmp_path / "questions.jsonl", tmp_path / "scores", monkeypatch=monkeypatch)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["words", "found", "questions"] and row.split()[:2] == ["all", "0.750"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 40


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "look_at_pairs.ipynb").read_text())["cells"]
    scope: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    sample = scope["samples"][0]  # type: ignore[index]
    assert "<mark" in sample._repr_html_() and (tmp_path / "pairs/report.html").is_file()
    assert CAPTION_PROMPT in "".join("".join(cell["source"]) for cell in cells)
