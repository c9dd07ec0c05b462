"""`mmbdhs evaluate` and `mmbdhs compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmbdhs.cli import main
from mmbdhs.data import read_jsonl
from mmbdhs.evaluation import read_benchmark
from mmbdhs.evaluation.answers import Answerer
from mmbdhs.miniature.benchmarks import BENCHMARK_OPTIONS, write_benchmarks
from mmbdhs.miniature.language import is_wrong
from mmbdhs.miniature.world import make_scene


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data"), images=6)


def judge(requests: list) -> list[str]:
    return ["Rating: 4"] * len(requests)


def evaluate(data: Path, out: Path, *words: str) -> int:
    return main(["evaluate", "--model", "miniature", "--data", str(data), "--output_dir", str(out), *words])


def test_the_miniature_is_scored_on_its_own_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate(data, tmp_path / "out", "--benchmark", "pope", "chair") == 0
    shown = capsys.readouterr().out
    stored = {name: json.loads((tmp_path / "out" / name / "results.json").read_text()) for name in ("pope", "chair")}
    for name, metric in (("pope", "accuracy"), ("chair", "recall")):
        value = stored[name]["metrics"]["all"][metric]["value"]
        assert f"{value:.3f} [" in shown and value > 0.1
    assert stored["pope"]["metrics"]["all"]["accuracy"]["count"] == 108
    assert stored["pope"]["facts"]["suffix"] == ""
    # CHAIR finds what the world's own parser finds of wrong objects in short captions.
    for row in read_jsonl(tmp_path / "out" / "chair" / "outcomes.jsonl"):
        if row["counts"]["chair_s"][0]:
            answer = next(
                one["answer"]
                for one in read_jsonl(tmp_path / "out" / "chair" / "answers.jsonl")
                if one["question_id"] == row["id"]
            )
            assert is_wrong(answer, make_scene("balanced", int(row["id"])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answerer, "answers", None)  # nothing is answered twice
        assert evaluate(data, tmp_path / "out", "--benchmark", "pope", "chair") == 0


def test_the_readme_shows_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    command, *shown = readme.partition("$ mmbdhs evaluate ")[2].partition("```")[0].splitlines()
    *words, _ = command.split()
    assert main(["evaluate", *words, str(tmp_path)]) == 0
    printed, expected = capsys.readouterr().out.split(), " ".join(shown).split()
    for one, other in zip(printed, expected, strict=True):
        if other.strip("[],").replace(".", "").isdigit():  # another CPU may answer a question or two in another way
            assert float(one.strip("[],")) == pytest.approx(float(other.strip("[],")), abs=0.01)
        else:
            assert one == other


def test_the_files_of_the_miniature_are_those_of_its_scenes(data: Path) -> None:
    questions = read_benchmark("pope", data, **BENCHMARK_OPTIONS["pope"]).questions()
    assert len(questions) == 6 * 18 and all(question.image.is_file() for question in questions)
    assert {question.text for question in read_benchmark("chair", data, **BENCHMARK_OPTIONS["chair"]).questions()} == {
        "Describe the image."
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--benchmark", "popee"), "benchmark: 'popee' is unknown; is it 'pope'?"),
        (("--benchmark", "pope", "pope"), "benchmark: needs every name once, got pope twice"),
        (("--benchmark", "mmhal"), "mmhal: needs the files "),
        (("--benchmark", "pope", "--limit", "0"), "limit: needs an integer"),
        (("--benchmark", "pope", "--max_new_tokens", "0"), "max_new_tokens: needs an integer"),
        (("--benchmark", "pope", "--device", "abacus"), "device: needs a device such as cuda:1 or cpu"),
        (("--benchmark", "pope", "--benchmark_options", "gqa.suffix="), "benchmark_options: needs BENCHMARK.OPTION"),
        (("--benchmark", "pope", "--benchmark_options", "pope.sufix="), "pope: needs options of "),
        (("--benchmark", "pope", "--benchmark_options", "pope.images=/nowhere"), "images: needs every image"),
        (("--benchmark", "pope", "--judge_url", "http://127.0.0.1:9"), "judge: needs the name of the model"),
        (("--benchmark", "pope", "--judge", "nothing:here"), "judge: needs an object that can be imported"),
        (("--benchmark", "pope", "--nothing", "1"), "option: 'nothing' is unknown"),
    ],
)
def test_wrong_words_end_with_one_line_before_the_model_is_loaded(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("mmbdhs.evaluation.command.load_model", None)
    with pytest.raises(SystemExit, match="2"):
        evaluate(data, tmp_path / "out", *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mmbdhs evaluate: {message}")


def mmhal_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    row = {
        **{"question_type": "attribute", "image_id": "1", "image_src": "http://x/1.jpg", "image_content": ["a cup"]},
        **{"question": "What colour is the cup?", "gt_answer": "Red."},
    }
    (folder / "response_template.json").write_text(json.dumps([row]))
    (folder / "images").mkdir()
    (write_benchmarks(folder / "scenes", 1) / "chair" / "images" / "balanced-0000.png").rename(
        folder / "images" / "1.jpg"
    )


def test_a_judge_is_a_function_by_its_name_or_an_endpoint_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    mmhal_files(tmp_path / "data" / "mmhal")
    words = ("--benchmark", "mmhal", "--max_new_tokens", "8")
    assert evaluate(tmp_path / "data", tmp_path / "out", *words, "--judge", f"{__name__}:judge") == 0
    stored = json.loads((tmp_path / "out" / "mmhal" / "results.json").read_text())
    assert stored["metrics"]["all"]["score"]["value"] == 4 and stored["judge"]["name"].endswith(".judge")
    assert stored["metrics"]["all"]["unreadable"]["value"] == 0
    monkeypatch.setattr("mmbdhs.evaluation.command.load_model", None)
    capsys.readouterr()
    for judged, message in (
        ((), "judge: mmhal needs a judge of its answers, got None"),
        (("--judge", "gpt", "--judge_url", "http://127.0.0.1:9/v1"), "gpt: Connection error"),
    ):
        with pytest.raises(SystemExit, match="2"):
            evaluate(tmp_path / "data", tmp_path / "other", *words, *judged)
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"mmbdhs evaluate: {message}")


def test_a_folder_of_another_run_ends_with_status_1(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate(data, tmp_path / "out", "--benchmark", "chair") == 0
    assert evaluate(data, tmp_path / "out", "--benchmark", "chair", "--max_new_tokens", "9") == 1
    assert "this one differs in decoding.max_new_tokens: 512, now 9" in capsys.readouterr().err


def test_ctrl_c_says_that_the_command_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Answerer, "answers", interrupted)
    assert evaluate(data, tmp_path / "out", "--benchmark", "chair") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command continues"


def test_compare_shows_differences_and_draws_them(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    names = [str(tmp_path / name) for name in ("long", "short", "pope")]
    assert evaluate(data, Path(names[0]), "--benchmark", "chair", "pope") == 0
    assert evaluate(data, Path(names[1]), "--benchmark", "chair", "--max_new_tokens", "12") == 0
    assert evaluate(data, Path(names[2]), "--benchmark", "pope") == 0
    capsys.readouterr()
    assert main(["compare", *names[:2], "--plot", str(tmp_path / "plot.png"), "--draws", "200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"chair: {names[0]} → {names[1]}" and lines[2].startswith("group  metric")
    recall = next(line for line in lines if line.startswith("all    recall")).split()
    assert float(recall[4]) < 0 and recall[-2] == "0" and int(recall[-1]) > 0
    assert "the runs differ in decoding.max_new_tokens: 512, now 12" in lines
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", names[0], names[2], "--groups"]) == 0
    assert "adversarial" in capsys.readouterr().out
    for folders, message in (
        (names[:1], "runs: needs two folders or more, got 1"),
        (names[1:], "runs: need a benchmark in common"),
        ([names[0], names[0]], "runs: needs every folder once"),
        ([names[0], str(tmp_path / "nowhere")], "needs a folder of mmbdhs evaluate with results.json"),
    ):
        assert main(["compare", *folders]) == 2
        assert message in capsys.readouterr().err
