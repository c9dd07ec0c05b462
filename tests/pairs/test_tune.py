"""`tune`: what it reads off is what plain runs with those settings bring, and its rule on numbers worked by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.pair_runs import loaded, shared_words
from PIL import Image

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.evaluation import ratio
from mmbdhs.miniature.demo import minilm
from mmbdhs.miniature.language import CAPTION_PROMPT, caption, questions
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.pairs.tune import tune
from mmbdhs.pairs.tune_report import Candidate, Question, TuneReport, is_flipped, is_restated

CONFIG = BDHSConfig(max_iterations=3, max_new_tokens=24)
MASKS, THRESHOLDS = (0.5, 1.0), (0.6, 0.9, 0.97, 1.0)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Captions and yes/no answers, of which the last two have equal references and the same image."""
    found = []
    for number in range(8):
        scene = make_scene("balanced", number)
        asked = questions(scene)[number // 2 % 3]
        prompt, chosen = (asked.text, asked.answer) if number % 2 else (CAPTION_PROMPT, caption(scene))
        found.append({"images": [render(scene)], "prompt": prompt, "chosen": chosen})
    other = found[-1] | {"prompt": "Look well. " + found[-1]["prompt"]}
    return [*found, other]


@pytest.fixture(scope="module")
def report(records: list[dict[str, Any]]) -> TuneReport:
    return tuned(records, {"MiniLM": minilm(), "words": shared_words})


def tuned(data: Any, similarities: Any, config: BDHSConfig = CONFIG, **settings: Any) -> TuneReport:
    lists = {"mask_thresholds": MASKS, "similarity_thresholds": THRESHOLDS} | settings
    return tune(*loaded(), data, config, similarities=similarities, progress=False, **lists)


def columns(records: Sequence[dict[str, Any]]) -> tuple[list[Any], ...]:
    return tuple([record[name] for record in records] for name in ("images", "prompt", "chosen"))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", ["MiniLM", "words"])
def test_what_is_read_off_is_what_a_plain_run_brings(
    name: str, threshold: float, mask: float, report: TuneReport, records: list[dict[str, Any]]
) -> None:
    similarity = {"MiniLM": minilm(), "words": shared_words}[name]
    config = replace(CONFIG, mask_threshold=mask, similarity_threshold=threshold)
    samples = bdhs_sample(*loaded(), *columns(records), config, similarity)
    setting = next(one for one in report.settings if one == (name, threshold))
    first = report.accepted_at(mask, setting)
    responses = {(one.record, one.iteration): one for one in report.candidates if one.mask_threshold == mask}
    for number, sample in enumerate(samples):
        found = responses[number, sample.iterations]
        assert first.get(number, 3) == sample.iterations
        assert (found.text, found.guided) == (sample.rejected, sample.guided)
        assert found.similarities[name] == pytest.approx(sample.similarity, abs=1e-5)
        assert (number in first) == (sample.similarity < threshold)
    for last, share in enumerate(report.accepted(mask, setting), 1):
        hits = [one.iterations <= last and one.similarity < threshold for one in samples]
        assert share.value == sum(hits) / 9


def test_every_iteration_of_every_record_is_there_once(report: TuneReport) -> None:
    places = [(one.mask_threshold, one.record, one.iteration) for one in report.candidates]
    assert sorted(places) == [(mask, record, k) for mask in MASKS for record in range(9) for k in (1, 2, 3)]


def test_the_outcome_is_the_same_every_time(report: TuneReport, records: list[dict[str, Any]], tmp_path: Path) -> None:
    again = tuned(records, {"MiniLM": minilm(), "words": shared_words})
    report.save(tmp_path / "one")
    again.save(tmp_path / "two")
    for name in ("tune.json", "tune.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_files(report: TuneReport, tmp_path: Path) -> None:
    data, picture = report.save(tmp_path)
    found = json.loads(data.read_text(encoding="utf-8"))
    row = {"mask_threshold": 0.5, "similarity": "MiniLM", "similarity_threshold": 0.97, "iteration": 2, "records": 9}
    (match,) = [one for one in found["rows"] if row.items() <= one.items()]
    assert 0 <= match["low"] <= match["accepted"] <= match["high"] <= 1
    assert len(found["rows"]) == 2 * 2 * 4 * 3
    assert found["recommendation"] == report.recommendation.reason
    assert [len(one["responses"]) for one in found["examples"]] == [2] * 3
    with Image.open(picture) as image:
        low, high = image.convert("L").getextrema()
        assert image.size[0] > 1000 and low < 100 < high


def test_records_that_cannot_be_used_are_left_out(
    records: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    broken = [records[0] | {"images": [b"no image"]}, records[1] | {"images": []}, *records[:2]]
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        report = tuned(broken, {"words": shared_words})
    assert list(report.questions) == [2, 3]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "left out record 1",
        "left out record 0",
    ]
    with pytest.raises(ValueError, match=r"data: needs records that can be sampled, none of the 1 tried can be"):
        tuned(broken[:1], {"words": shared_words})


def test_a_sample_is_spread_over_the_data(records: list[dict[str, Any]]) -> None:
    assert list(tuned(records, {"words": shared_words}, rows=4, mask_thresholds=[1]).questions) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_thresholds": []}, "mask_thresholds: needs at least one to try, got none"),
        ({"mask_thresholds": [2]}, r"mask_thresholds: needs a number in \[0, 1\], got 2"),
        ({"similarity_thresholds": ["high"]}, r"similarity_thresholds: needs a number in \[0, 1\], got 'high'"),
        ({"rows": 0}, "rows: needs an integer of at least 1, got 0"),
        ({"similarities": {}}, "similarities: needs at least one to try, got none"),
        ({"config": BDHSConfig(noise_steps=5)}, "config: needs noise_steps=0"),
        ({"similarities": {"short": lambda a, b: [0.5]}}, "similarity: needs 6 numbers for 6 pairs of texts"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str, records: list[dict[str, Any]]) -> None:
    arguments = {"similarities": {"words": shared_words}, "config": CONFIG} | settings
    with pytest.raises(ValueError, match=message):
        tuned(records[:1], **arguments)


@pytest.mark.parametrize(
    ("reference", "response", "flipped"),
    [
        ("Yes, there is a cat.", "No, there is a cat.", True),
        ("no.", " Yes", True),
        ("No, it rains.", "yes it does", True),
        ("Yes.", "Yes, a dog.", False),
        ("A cat. No dog.", "Yes.", False),
        ("Nothing is there.", "Yes, a cat.", False),
        ("No. 7 is red.", "Yes, it is.", False),
        ("Yes.", "", False),
    ],
)
def test_flipped_answers(reference: str, response: str, flipped: bool) -> None:
    assert is_flipped(reference, response) is flipped


@pytest.mark.parametrize(
    ("reference", "response", "restated"),
    [
        ("There is a red cat.", "A red cat is there!", True),
        ("The cat and the dog sit.", "the cat, the dog sit", True),
        ("A red cat.", "A red cat.", False),
        ("A red cat.", "A  red\ncat.", False),
        ("A red cat, a blue dog.", "A blue cat, a red dog.", False),
        ("The cat sits.", "The cat does not sit.", False),
    ],
)
def test_restatements(reference: str, response: str, restated: bool) -> None:
    assert is_restated(reference, response) is restated


def worked(rows: Sequence[tuple[float, int, str, float]], **settings: Any) -> TuneReport:
    """A report on one record for each of the numbers in the rows (ρ_th, record, response, similarity), whose reference
    is "Yes, a cat.", after a single iteration."""
    candidates = [Candidate(number, mask, 1, True, text, {"model": score}) for mask, number, text, score in rows]
    questions = {number: Question("A cat?", "Yes, a cat.") for _, number, _, _ in rows}
    return TuneReport(questions, candidates, (0.9, 0.95, 0.99), BDHSConfig(max_iterations=1, **settings))


def test_the_recommended_threshold_has_the_fewest_errors() -> None:
    flips = [(0.5, number, "No, a cat.", score) for number, score in enumerate((0.85, 0.92, 0.92, 0.96))]
    restated = [(0.5, 4 + number, "yes: a cat", score) for number, score in enumerate((0.93, 0.96, 0.96, 0.999))]
    report = worked(flips + restated)
    low, middle, high = report.settings
    assert [report.missed_flips(one).value for one in report.settings] == [0.75, 0.25, 0.0]
    assert [report.accepted_restatements(one).value for one in report.settings] == [0.0, 0.25, 0.75]
    assert [report.errors(one) for one in (low, middle, high)] == [0.375, 0.25, 0.375]
    best = report.recommendation
    assert (best.similarity_threshold, best.mask_threshold) == (0.95, 0.5)
    assert "judges 25% of 4 flipped answers as similar (95% interval 5% to 70%)" in best.reason  # Wilson's, by hand
    assert "25% of 4 restatements as different" in best.reason and "no other is 2 points better" in best.reason


def test_without_answers_and_restatements_the_config_stays() -> None:
    report = worked([(0.5, 0, "Yes, a dog.", 0.3)], similarity_threshold=0.98)
    assert report.recommendation.similarity_threshold == 0.99
    assert "no flipped answers, so it cannot tell whether ε_s is too low" in report.recommendation.reason
    assert "no restatements, so it cannot tell whether ε_s is too high" in report.recommendation.reason


def test_rho_stays_at_the_configs_unless_another_accepts_more() -> None:
    accepted = {0.9: 97, 0.95: 99, 0.99: 98, 1.0: 100}  # of 100 records
    rows = [
        (mask, number, "Yes, a dog.", 0.3 if number < count else 0.999)
        for mask, count in accepted.items()
        for number in range(100)
    ]
    assert worked(rows).recommendation.mask_threshold == 0.99  # 2 points below the best
    assert worked(rows, mask_threshold=0.9).recommendation.mask_threshold == 0.95
    reason = worked(rows).recommendation.reason
    assert "With ρ_th = 0.99, 98% of 100 records have an accepted response after 1 iteration" in reason
    assert "overlaps with that of ρ_th = 0.9, 0.95, 1." in reason


def test_the_first_model_stays_unless_another_makes_fewer_errors() -> None:
    def report(first: float, second: float) -> TuneReport:
        flips = [Candidate(0, 0.5, 1, True, "No.", {"first": first, "second": second})]
        return TuneReport({0: Question("A cat?", "Yes.")}, flips, (0.9, 0.97), BDHSConfig(max_iterations=1))

    assert report(0.95, 0.5).recommendation[:2] == ("first", 0.97)
    assert report(0.98, 0.95).recommendation[:2] == ("second", 0.97)


def test_an_interval_takes_the_responses_to_one_record_together() -> None:
    rows = [(mask, number, "No.", 0.98) for mask in (0.5, 0.9, 1.0) for number in range(4)]
    share = worked(rows).missed_flips(worked(rows).settings[0])
    expected = ratio([3] * 4, [3] * 4)
    assert (share.value, share.count, share.low) == (1.0, 12, expected.low)


def test_the_table_marks_the_recommended_setting() -> None:
    lines = str(worked([(0.5, 0, "Yes, a dog.", 0.3), (1.0, 0, "Yes, a dog.", 0.3)])).splitlines()
    assert lines[0] == "Share of 1 records with an accepted response after each iteration:"
    assert " ".join(lines[1].split()) == "ρ_th ε_s 1 95% after 1 flips missed restated accepted similarity"
    assert [line for line in lines if "<- recommended" in line] == [lines[5]]
    assert lines[5].split()[:4] == ["1", "0.95", "100%", "21%"]


def test_examples_show_one_record_under_each_rho() -> None:
    shown = worked([(0.5, 0, "Yes, a dog.", 0.3), (1.0, 0, "No.", 0.3)]).side_by_side().splitlines()
    assert shown == ["", "asked     A cat?", "chosen    Yes, a cat.", "ρ_th 0.5  Yes, a dog.", "ρ_th 1    No."]
