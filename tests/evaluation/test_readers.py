"""Benchmarks as published: what each reads, asks and counts, on cases worked out by hand."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mmbdhs.evaluation.amber import Amber
from mmbdhs.evaluation.benchmark import Benchmark, Question
from mmbdhs.evaluation.files import missing_images
from mmbdhs.evaluation.registry import READERS, read_benchmark
from mmbdhs.evaluation.scores import estimates
from mmbdhs.evaluation.textvqa import accuracy, normalised

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"
SHORT = "\nAnswer the question using a single word or phrase."


def put(path: Path, *rows: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def put_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def pope_files(folder: Path) -> None:
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": f"{n}.jpg", "text": "Is there a dog?", "label": label}
            for n, label in enumerate(("yes", "no"), 1)
        ]
        put(folder / f"coco_pope_{split}.json", *rows)


def coco_files(folder: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (7, 9)]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    boxes = [{"image_id": 7, "category_id": 1}, {"image_id": 9, "category_id": 18}]
    put_json(folder / "instances_val2014.json", {"images": images, "categories": categories, "annotations": boxes})
    captions = [{"image_id": 7, "caption": "A man sits on a chair."}, {"image_id": 9, "caption": "A puppy."}]
    put_json(folder / "captions_val2014.json", {"images": images, "annotations": captions})
    table = "person, man, woman\ndog, puppy\nchair, seat\nknife\nteddy bear\n"
    (folder / "synonyms.txt").write_text(table, encoding="utf-8")


def halbench_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    coco_files(folder)
    rows = [
        {"image_id": n, "question": "What is there?", "image": base64.b64encode(b"picture").decode()} for n in (7, 9)
    ]
    put(folder / "obj_halbench_300_with_image.jsonl", *rows)


def mmhal_files(folder: Path) -> None:
    item = {"question_topic": "food", "image_content": ["Cup", "Tea"], "question": "Which?", "gt_answer": "{} tea"}
    rows = [
        {**item, "question_type": kind, "image_id": kind, "image_src": f"https://x/{kind}_o.jpg"}
        for kind in ("attribute", "other")
    ]
    put_json(folder / "response_template.json", rows)


def llava_files(folder: Path) -> None:
    rows = [
        {"question_id": n, "image": "1.jpg", "text": f"q{n}", "category": c} for n, c in enumerate(("conv", "detail"))
    ]
    put(folder / "questions.jsonl", *rows)
    put(folder / "context.jsonl", {"image": "1.jpg", "caption": "A lake."})
    put(folder / "answers_gpt4.jsonl", *({"question_id": n, "text": f"gpt{n}"} for n in range(2)))


def textvqa_files(folder: Path) -> None:
    answers = ["two"] * 2 + ["2"] + ["three"] * 7
    put_json(
        folder / "TextVQA_0.5.1_val.json",
        {"data": [{"question_id": 5, "image_id": "im", "question": "How many?", "answers": answers}]},
    )


def gqa_files(folder: Path) -> None:
    rows = {
        "1": {"imageId": "n1", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}},
        "2": {"imageId": "n1", "question": "What is it?", "answer": "cup", "types": {"structural": "query"}},
        "3": {"imageId": "n2", "question": "?", "answer": "no", "types": {"structural": "verify"}, "isBalanced": False},
    }
    put_json(folder / "testdev_balanced_questions.json", rows)


def mmvet_files(folder: Path) -> None:
    row = {"imagename": "v1.png", "question": "x?", "answer": "1<AND>2", "capability": ["ocr", "math"]}
    put_json(folder / "mm-vet.json", {"v1_0": row, "v1_1": {**row, "capability": ["ocr"]}})


def amber_files(folder: Path) -> None:
    kinds = ("discriminative-hallucination", "discriminative-attribute-state", "relation")
    asked = [{"id": 1005 + n, "image": "AMBER_1.jpg", "query": "Is it?"} for n in range(3)]
    put_json(folder / "query" / "query_discriminative.json", asked)
    truths = [
        {"id": 1005 + n, "type": kind, "truth": "yes" if kind.endswith("state") else "no"}
        for n, kind in enumerate(kinds)
    ]
    put_json(folder / "annotations.json", [{"id": 1, "type": "generative", "truth": ["dog"]}, *truths])


def chair_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    coco_files(folder)


FILES: dict[str, Callable[[Path], None]] = {
    "pope": pope_files,
    "chair": chair_files,
    "object_halbench": halbench_files,
    "mmhal": mmhal_files,
    "mmhal_v": mmhal_files,
    "llava_bench": llava_files,
    "textvqa": textvqa_files,
    "gqa": gqa_files,
    "mmvet": mmvet_files,
    "amber": amber_files,
}


def made(name: str, data: Path, **options: object) -> Benchmark:
    FILES[name](data / name)
    return read_benchmark(name, data, **options)


def values(
    benchmark: Benchmark, answers: Mapping[str, str], verdicts: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    found = estimates(benchmark.outcomes(answers, verdicts or {}))
    return {group: {name: e.value for name, e in metrics.items()} for group, metrics in found.items()}


def test_every_reader_is_tested() -> None:
    assert set(FILES) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_every_benchmark_says_what_is_missing_and_whence(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{name}: needs the files .*{name}/.*get "):
        read_benchmark(name, tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_answers_fit_the_questions(name: str, tmp_path: Path) -> None:
    benchmark = made(name, tmp_path)
    assert benchmark.name == name and benchmark.facts["rows_random" if name == "pope" else "rows"]
    questions = benchmark.questions()
    assert all(isinstance(question, Question) for question in questions)
    assert len({question.id for question in questions}) == len(questions)
    answers = {question.id: "A man with a knife" for question in questions}
    requests = benchmark.judge_requests(answers)
    assert all((request.image is not None) == (name == "mmhal_v") for request in requests)
    assert all("A man with a knife" in request.text for request in requests)
    verdicts = {request.id: "?" for request in requests}
    outcomes = benchmark.outcomes(answers, verdicts)
    assert [outcome.id for outcome in outcomes] == [question.id for question in questions]
    if requests:
        assert estimates(outcomes)["all"]["unreadable"].value == 1
        with pytest.raises(ValueError, match=r"verdicts: needs one for each of \d+ questions, lacks"):
            benchmark.outcomes(answers, {})
    first = questions[0].id
    with pytest.raises(ValueError, match=r"answers: needs one for each of \d+ questions, lacks 1"):
        benchmark.outcomes({i: a for i, a in answers.items() if i != first}, verdicts)
    with pytest.raises(ValueError, match="has 1 of other questions"):
        benchmark.outcomes({**answers, "nobody's": "yes"}, verdicts)


def test_all_missing_images_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    missing_images([Question("0", tmp_path / "0", "")])
    with pytest.raises(FileNotFoundError, match=r"images: .* 30 are missing: .*/1, .*/20, …") as error:
        missing_images([Question(f"{n}{a}", tmp_path / str(n), "") for n in range(31) for a in "ab"])
    assert str(error.value).count(str(tmp_path)) == 20


def test_names_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark: needs one of pope, chair, .*, got 'popo'"):
        read_benchmark("popo", tmp_path)
    with pytest.raises(ValueError, match="gqa: needs options of images, match, suffix, got instruction"):
        read_benchmark("gqa", tmp_path, instruction="x")


def test_pope_counts_by_split(tmp_path: Path) -> None:
    benchmark = made("pope", tmp_path, images=tmp_path / "coco")
    assert benchmark.questions()[0] == Question("random/1", tmp_path / "coco" / "1.jpg", "Is there a dog?" + SHORT)
    said = {"random/1": "yes", "random/2": "no", "popular/1": "", "popular/2": "NO"}
    found = values(benchmark, {**said, "adversarial/1": "Well, no", "adversarial/2": "Yes. no"})
    assert {group: metrics["accuracy"] for group, metrics in found.items()} == {
        "all": 3 / 6,
        "adversarial": 0,
        "popular": 1 / 2,
        "random": 1,
    }
    assert found["all"]["yes_ratio"] == 4 / 6


def test_pope_refuses_what_is_no_pope_file(tmp_path: Path) -> None:
    pope_files(tmp_path / "pope")
    path = tmp_path / "pope" / "coco_pope_random.json"
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there?", "label": "yes"}
    put(path, row, row)
    with pytest.raises(ValueError, match=r"coco_pope_random.json: needs every id once, got 1 twice"):
        read_benchmark("pope", tmp_path)
    put(path, row, {**row, "question_id": 2, "label": "maybe"})
    with pytest.raises(ValueError, match="needs the label yes or no, row 2 has 'maybe'"):
        read_benchmark("pope", tmp_path)
    put(path, {"questionId": 1, "prediction": "yes"})
    with pytest.raises(
        ValueError, match=r"needs the columns question_id, image, text, label, row 1 has \['prediction'"
    ):
        read_benchmark("pope", tmp_path)


def test_popes_rule_on_9000_published_questions_with_odd_answers(tmp_path: Path) -> None:
    """The rule stated again: "no" where one of three words stands between spaces before the first full stop."""
    if not PUBLISHED.exists():
        pytest.skip("the published files are not here")
    for split in ("random", "popular", "adversarial"):
        (tmp_path / f"coco_pope_{split}.json").symlink_to(PUBLISHED / "pope" / f"pope_{split}.json")
    benchmark = READERS["pope"](tmp_path)
    draw = random.Random(3)
    pieces = ["No", "no", "not", "NO", "yes", "Yes", ",", ".", " ", "\n", "nothing", "a dog", "!"]
    answers = {q.id: "".join(draw.choice(pieces) for _ in range(draw.randrange(7))) for q in benchmark.questions()}
    assert len(answers) == 9000
    hits = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    labels = {
        f"{split}/{row['question_id']}": row["label"]
        for split in ("random", "popular", "adversarial")
        for row in map(json.loads, (PUBLISHED / "pope" / f"pope_{split}.json").read_text().splitlines())
    }
    for number, answer in answers.items():
        before = f" {answer[: (answer + '.').index('.')]} ".translate({ord(","): None})
        yes = not any(f" {word} " in before for word in ("No", "not", "no"))
        hits[("t" if yes == (labels[number] == "yes") else "f") + ("p" if yes else "n")] += 1
    found = values(benchmark, answers)["all"]
    assert min(hits.values()) > 300
    assert found["accuracy"] == (hits["tp"] + hits["tn"]) / 9000
    assert found["precision"] == hits["tp"] / (hits["tp"] + hits["fp"])
    assert found["recall"] == hits["tp"] / (hits["tp"] + hits["fn"])
    assert found["f1"] == pytest.approx(2 * hits["tp"] / (2 * hits["tp"] + hits["fp"] + hits["fn"]))


def test_chair_counts_captions(tmp_path: Path) -> None:
    benchmark = made("chair", tmp_path)
    # 7 shows a person and a chair; 9 shows a dog.
    found = values(benchmark, {"7": "A man, a woman and a dog.", "9": "A puppy on a chair"})["all"]
    assert found == pytest.approx(
        {"chair_i": 2 / 5, "chair_s": 1, "recall": 2 / 3, "objects": 5 / 2, "length": (7 + 5) / 2}
    )
    assert benchmark.facts["lemmatiser"] == "mmbdhs.evaluation.words.singular"
    some = read_benchmark("chair", tmp_path, count=1, seed=4)
    assert (some.facts["rows"], some.facts["seed"]) == (1, 4)
    with pytest.raises(ValueError, match="count: needs a number from 1 to 2, got 3"):
        read_benchmark("chair", tmp_path, count=3)


def test_object_halbench_with_and_without_a_judge(tmp_path: Path) -> None:
    benchmark = made("object_halbench", tmp_path)
    assert (tmp_path / "object_halbench" / "images" / "7.jpg").read_bytes() == b"picture"
    answers = {"7": "A man sits near the woman's dog", "9": "only a dog"}
    assert [request.id for request in benchmark.judge_requests(answers)] == ["7"]
    # person twice by two words, a wrong knife; the other answer is too short.
    found = values(benchmark, answers, {"7": '["man", "woman", "Men", "sharp knife", "dog collar", "sky"]'})["all"]
    assert found == pytest.approx({"response_rate": 1, "object_rate": 1 / 3, "recall": 1 / 3, "unreadable": 0})
    alone = read_benchmark("object_halbench", tmp_path, objects="vocabulary")
    assert alone.judge_requests(answers) == []
    assert values(alone, answers)["all"] == pytest.approx({"response_rate": 1, "object_rate": 1 / 3, "recall": 1 / 3})


def test_mmhal_counts_ratings(tmp_path: Path) -> None:
    benchmark = made("mmhal", tmp_path)
    text = benchmark.judge_requests({"0": "{} red", "1": "blue"})[0].text
    assert "Cup, Tea" in text and "Which?" in text and "{} tea" in text and "{} red" in text
    assert benchmark.questions()[0].image == tmp_path / "mmhal" / "images" / "attribute_o.jpg"
    found = values(benchmark, {"0": "a", "1": "b"}, {"0": "Rating: 5", "1": "Rating: 5 or rating: 6"})
    assert found["all"] == {"score": 5 / 2, "hallucination_rate": 1 / 2, "unreadable": 1 / 2}
    assert found["attribute"]["score"] == 5
    (tmp_path / "judge.txt").write_text("{} {}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"instruction: needs 4 places \{\} to fill, .*judge.txt has 2"):
        read_benchmark("mmhal", tmp_path, instruction=tmp_path / "judge.txt")


def test_the_96_published_items_of_mmhal_are_read(tmp_path: Path) -> None:
    if not PUBLISHED.exists():
        pytest.skip("the published files are not here")
    benchmark = READERS["mmhal"](PUBLISHED / "mmhal")
    outcomes = benchmark.outcomes({str(n): "" for n in range(96)}, {str(n): "" for n in range(96)})
    kinds = [outcome.groups[0] for outcome in outcomes]
    assert len(kinds) == 96
    assert kinds == [kinds[n % 8] for n in range(96)] and len(set(kinds)) == 8


def test_llava_bench_compares_with_the_reference(tmp_path: Path) -> None:
    benchmark = made("llava_bench", tmp_path)
    first = benchmark.judge_requests({"0": "mine", "1": "ours"})[0].text
    assert first.startswith("[Context]\nA lake.\n\n[Question]\nq0\n\n[Assistant 1]\ngpt0\n\n[End of Assistant 1]")
    found = values(benchmark, {"0": "a", "1": "b"}, {"0": "8 6\nWell.", "1": "9 9 9"})
    assert found["all"]["score"] == pytest.approx(100 * (6 - 1) / (8 - 1))
    assert found["conv"]["score"] == 75 and found["all"]["unreadable"] == 1 / 2
    put_json(tmp_path / "llava_bench" / "rule.json", {"llava_bench_conv": {"role": "Helper", "prompt": "Rate."}})
    with pytest.raises(ValueError, match=r"rule.json: needs the rules llava_bench_detail, got \['llava_bench_conv'\]"):
        read_benchmark("llava_bench", tmp_path)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two", "2"),
        ("None", "0"),
        ("The  Bar.", "bar"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("well-known", "well known"),
        ("well -known", "well known"),
        ("a - b", "b"),
        ("dont", "don't"),
        ("couldntve couldnt've", "couldntve couldn't've"),
        ("Joe's", "joe 's"),
        ("yes?\n", "yes"),
        ("eleven", "eleven"),
        ("www.x.com", "wwwxcom"),
    ],
)
def test_vqa_normalisation(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_by_the_number_of_matching_humans(matches: int, expected: float) -> None:
    assert accuracy("Two!", ["2"] * matches + ["three"] * (10 - matches)) == pytest.approx(expected)


def test_textvqa_asks_with_a_suffix_or_a_published_prompt(tmp_path: Path) -> None:
    benchmark = made("textvqa", tmp_path)
    image = tmp_path / "textvqa" / "train_images" / "im.jpg"
    assert benchmark.questions() == [Question("5", image, "How many?" + SHORT)]
    assert values(benchmark, {"5": "2."})["all"]["accuracy"] == pytest.approx(0.9)
    prompts = tmp_path / "llava.jsonl"
    put(prompts, {"question_id": "im", "image": "im.jpg", "text": "How many?\nReference OCR token: 2" + SHORT})
    asked = read_benchmark("textvqa", tmp_path, prompts=prompts)
    assert asked.questions()[0].text.count("OCR") == 1 and asked.facts["prompts"] == "llava.jsonl"
    put(prompts, {"question_id": "other", "text": "How many?"})
    with pytest.raises(ValueError, match=r"llava.jsonl: needs a prompt for each question, lacks 1, such as \('im'"):
        read_benchmark("textvqa", tmp_path, prompts=prompts)


def test_gqa_matches_as_llava_or_exactly(tmp_path: Path) -> None:
    benchmark = made("gqa", tmp_path)
    assert values(benchmark, {"1": "Yes.", "2": "cup"}) == {
        "all": {"accuracy": 1},
        "binary": {"accuracy": 1},
        "open": {"accuracy": 1},
    }
    exact = read_benchmark("gqa", tmp_path, match="exact")
    assert values(exact, {"1": "Yes.", "2": "cup"})["binary"]["accuracy"] == 0
    text = (tmp_path / "gqa" / "testdev_balanced_questions.json").read_text(encoding="utf-8")
    (tmp_path / "gqa" / "testdev_balanced_questions.json").write_text(
        text.replace('"2": {', '"1": {'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"testdev_balanced_questions.json: needs every id once, got '1' twice"):
        read_benchmark("gqa", tmp_path)


def test_mmvet_scores_by_capability(tmp_path: Path) -> None:
    benchmark = made("mmvet", tmp_path)
    assert benchmark.judge_requests({"v1_0": "3", "v1_1": "4"})[0].text.endswith("\nx? | 1 <AND> 2 | 3 | ")
    found = values(benchmark, {"v1_0": "a", "v1_1": "b"}, {"v1_0": "0.5", "v1_1": "most of it"})
    assert {group: metrics["score"] for group, metrics in found.items()} == {"all": 25, "math": 50, "ocr": 25}


def test_amber_takes_no_for_the_positive_class(tmp_path: Path) -> None:
    benchmark = made("amber", tmp_path)
    found = values(benchmark, {"1005": "No", "1006": "No", "1007": "No."})
    assert found["all"] == pytest.approx(
        {"accuracy": 1 / 3, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "unreadable": 1 / 3}
    )
    assert list(found) == ["all", "attribute", "existence", "relation", "state"]
    first = read_benchmark("amber", tmp_path, match="first_word")
    assert isinstance(first, Amber)
    assert values(first, {"1005": "no, it", "1006": "Yes", "1007": "No."})["all"]["accuracy"] == 1
    put_json(tmp_path / "amber" / "annotations.json", [{"id": 1005, "type": "relation", "truth": "no"}])
    with pytest.raises(ValueError, match=r"annotations.json: needs a truth for each question, lacks 2, such as 1006"):
        read_benchmark("amber", tmp_path)
