"""A run over a benchmark: what it leaves on disk, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation_runs import COUNT, Scenes, scenes
from helpers.pair_runs import loaded

from mmbdhs import SamplingConfig
from mmbdhs.data import read_jsonl
from mmbdhs.evaluation import Question, estimates
from mmbdhs.evaluation import runner as module
from mmbdhs.evaluation.answers import Answerer
from mmbdhs.evaluation.runner import EvaluationResult, EvaluationRun, evaluate
from mmbdhs.runs import FolderInUseError, locked


@pytest.fixture
def benchmark(tmp_path: Path) -> Scenes:
    return scenes(tmp_path / "images")


def run(benchmark: Any, out: Path, **settings: Any) -> EvaluationResult:
    return evaluate(*loaded(), benchmark, output_dir=out, progress=False, **settings)


def test_a_run_leaves_answers_outcomes_and_results(benchmark: Scenes, tmp_path: Path) -> None:
    result = run(benchmark, tmp_path / "out")
    folder = tmp_path / "out" / "scenes"
    rows = read_jsonl(folder / "answers.jsonl")
    ids = [f"{image}-{number}" for image in range(4) for number in range(COUNT)]
    assert [row["question_id"] for row in rows] == ids and rows[5]["image"] == "1.png"
    texts = {name: text for name, _, text, _ in benchmark.rows}
    assert all(row["question"] == texts[row["question_id"]] for row in rows)
    answers = {row["question_id"]: row["answer"] for row in rows}
    outcomes = benchmark.outcomes(answers, {})
    assert result.metrics == estimates(outcomes) and result.metrics["all"]["right"].value > 0.5
    assert [row["counts"]["right"][0] for row in read_jsonl(folder / "outcomes.jsonl")] == [
        one.counts["right"][0] for one in outcomes
    ]
    stored = json.loads((folder / "results.json").read_text())
    assert stored["metrics"]["all"]["right"]["value"] == result.metrics["all"]["right"].value
    assert stored["decoding"]["temperature"] == 0 and stored["decoding"]["max_new_tokens"] == 12
    assert stored["questions"] == {"asked": 16, "published": 16} and stored["facts"] == benchmark.facts
    assert {"model", "processor", "device", "versions", "date", "judge"} < stored.keys()
    assert str(result).splitlines()[1].split()[0] == "all" and str(result).splitlines()[0].endswith("questions")


class StoppedError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[list[Question]]:
    """Let the model fail after so many answers; returns what it was asked."""
    asked: list[list[Question]] = []
    own = Answerer.answers

    def answers(self: Answerer, questions: Sequence[Question]) -> Iterator[str]:
        asked.append(list(questions))
        for number, answer in enumerate(own(self, questions)):
            if number == count:
                raise StoppedError
            yield answer

    monkeypatch.setattr(Answerer, "answers", answers)
    return asked


def test_a_stopped_run_goes_on_to_the_same_bytes(
    benchmark: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2 * COUNT)
    run(benchmark, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 5)
        run(benchmark, tmp_path / "cut")
    file = tmp_path / "cut" / "scenes" / "answers.jsonl"
    assert len(read_jsonl(file)) == 5
    file.write_bytes(file.read_bytes() + b'{"question_id": "1-')  # cut short by a kill
    with monkeypatch.context() as patch:
        asked = stop_after(patch, 100)
        run(benchmark, tmp_path / "cut")
    assert [len(questions) for questions in asked] == [8, 8]  # a block is answered as a whole
    for name in ("answers.jsonl", "outcomes.jsonl", "run.json"):
        assert (file.parent / name).read_bytes() == (tmp_path / "whole" / "scenes" / name).read_bytes()
    with monkeypatch.context() as patch:
        assert stop_after(patch, 0) == []
        run(benchmark, tmp_path / "cut")


def test_blocks_divide_no_image() -> None:
    questions = [Question(f"{image}{n}", Path(str(image)), "?") for image in range(100) for n in range(image % 7 + 1)]
    blocks = list(module._blocks(questions))
    assert [number for block in blocks for number in block] == list(range(len(questions)))
    ends = [block.stop for block in blocks[:-1]]
    assert all(len(block) >= 256 for block in blocks[:-1])
    assert all(questions[end - 1].image != questions[end].image for end in ends)
    assert list(module._blocks([])) == []


def test_the_order_of_the_items_changes_no_metric(benchmark: Scenes, tmp_path: Path) -> None:
    turned = replace(benchmark, rows=benchmark.rows[::-1])
    assert run(turned, tmp_path / "turned").metrics == run(benchmark, tmp_path / "out").metrics


def test_a_limit_asks_the_first_images(benchmark: Scenes, tmp_path: Path) -> None:
    result = run(benchmark, tmp_path / "out", limit=6)
    rows = read_jsonl(tmp_path / "out" / "scenes" / "answers.jsonl")
    assert [row["question_id"] for row in rows] == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1"]
    assert result.metrics["all"]["right"].count == 6 and set(result.metrics) == {"all", "0", "1"}
    stored = json.loads((result.folder / "results.json").read_text())
    assert stored["questions"] == {"asked": 6, "published": 16}


def test_a_limited_run_asks_the_judge_about_its_answers_alone(tmp_path: Path) -> None:
    asked: list[str] = []

    def judge(requests: Any) -> list[str]:
        asked.extend(request.id for request in requests)
        return ["right"] * len(requests)

    result = run(scenes(tmp_path / "images", judged=True), tmp_path / "out", limit=3, judge=judge)
    assert asked == ["0-0", "0-1", "0-2"] and result.metrics["all"]["right"].value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": SamplingConfig(temperature=0, max_new_tokens=3)}, "decoding.max_new_tokens: 12, now 3"),
        ({"limit": 5}, "benchmark.records: 16, now 5"),
    ],
)
def test_another_run_does_not_go_on_in_the_folder(
    benchmark: Scenes, tmp_path: Path, change: dict, message: str
) -> None:
    run(benchmark, tmp_path / "out")
    before = (tmp_path / "out" / "scenes" / "answers.jsonl").read_bytes()
    if "limit" in change:
        (tmp_path / "out" / "scenes" / "answers.jsonl").write_bytes(b"")
    with pytest.raises(FolderInUseError, match=message):
        run(benchmark, tmp_path / "out", **change)
    assert "limit" in change or (tmp_path / "out" / "scenes" / "answers.jsonl").read_bytes() == before


def test_other_questions_or_images_do_not_go_on_in_the_folder(benchmark: Scenes, tmp_path: Path) -> None:
    run(benchmark, tmp_path / "out")
    reworded = replace(benchmark, rows=tuple((i, image, text + " ", yes) for i, image, text, yes in benchmark.rows))
    with pytest.raises(FolderInUseError, match=r"benchmark\.fingerprint"):
        run(reworded, tmp_path / "out")
    benchmark.rows[0][1].write_bytes(benchmark.rows[0][1].read_bytes() + b" ")
    with pytest.raises(FolderInUseError, match=r"benchmark\.fingerprint"):
        run(benchmark, tmp_path / "out")


def test_what_is_wrong_is_told_before_the_model_runs(benchmark: Scenes, tmp_path: Path) -> None:
    for image in {image for _, image, *_ in benchmark.rows[:2]}:
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r"2 are missing: .*0\.png, .*1\.png"):
        EvaluationRun(benchmark, tmp_path / "out")
    again = scenes(tmp_path / "images")
    with pytest.raises(ValueError, match="scenes: needs every id once, got '0-0' twice"):
        EvaluationRun(replace(again, rows=again.rows + again.rows[:1]), tmp_path / "out")
    with pytest.raises(ValueError, match="judge: scenes needs a judge of its answers, got None"):
        EvaluationRun(replace(again, judged=True), tmp_path / "out")
    with pytest.raises(TypeError, match="judge: needs a function, a ChatEndpoint or a ModelJudge, got int"):
        EvaluationRun(replace(again, judged=True), tmp_path / "out", judge=3)
    with pytest.raises(ValueError, match="limit: needs an integer"):
        EvaluationRun(again, tmp_path / "out", limit=0)
    with pytest.raises(ValueError, match="data: needs the folder of the files of pope, got None"):
        run("pope", tmp_path / "out")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "scenes").write_text("")
    with pytest.raises(ValueError, match=r"output_dir: needs a folder, .* is a file"):
        EvaluationRun(again, tmp_path / "out")


def test_answers_to_other_questions_are_not_scored(benchmark: Scenes, tmp_path: Path) -> None:
    run(benchmark, tmp_path / "out")
    file = tmp_path / "out" / "scenes" / "answers.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"answers.jsonl: needs the answer to question '0-0' in line 1, got '0-1'"):
        run(benchmark, tmp_path / "out")
    file.write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="each of 16 questions, has 17 lines; choose another folder"):
        run(benchmark, tmp_path / "out")
    file.write_bytes(lines[0] + b"no JSON\n")
    with pytest.raises(ValueError, match=r"answers.jsonl: .*line 2"):
        run(benchmark, tmp_path / "out")
    file.write_bytes(b"".join(lines[:3]))
    (tmp_path / "out" / "scenes" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has answers but no run\.json"):
        run(benchmark, tmp_path / "out")


def test_a_folder_serves_one_process_at_a_time(benchmark: Scenes, tmp_path: Path) -> None:
    started = EvaluationRun(benchmark, tmp_path / "out")
    with locked(started.folder), pytest.raises(FolderInUseError, match="in use by another process"):
        started.run(*loaded(), progress=False)
