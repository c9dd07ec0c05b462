"""What the alignment benchmark's own parts say of answers and of runs, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import alignment
import alignment_page as page
import alignment_rejected as rejected
import alignment_tables
import alignment_world as world
import pytest
from alignment_judge import VOCABULARY, Captions, Colours, judge
from alignment_methods import BDHS, CONTROL, MAIN, MORE, SFT
from alignment_runs import BASELINE, Run, RunFile, packed, unpacked
from alignment_world import Mixture

from mmbdhs import miniature
from mmbdhs.evaluation import Outcome
from mmbdhs.evaluation.coco_captions import Captioned
from mmbdhs.miniature.language import BIASED, CLEAN, is_wrong, mentions, wrong_mentions
from mmbdhs.miniature.world import Scene, Thing
from mmbdhs.training import Comparison

SCENE = Scene("lake", (Thing("boat", "red", 0), Thing("fish", "blue", 4)))
TRUE, HALF, FALSE = "The boat is red.", "The boat is red. The cat is black.", "The boat is green. The cat is black."


def test_responses_are_as_alike_as_the_claims_they_share() -> None:
    first = ["The boat is red. The fish is blue.", TRUE, TRUE]
    second = ["The fish is blue. The boat is red.", HALF, FALSE]
    assert world.same_claims(first, second) == [1.0, 0.5, 0.0]
    yes, swapped, no = "Yes, there is a key.", "No, there is a key.", "No, there is no key."
    assert world.same_claims([yes, yes, yes], [yes, swapped, no]) == [1.0, pytest.approx(1 / 3), 0.0]


def test_the_oracle_prefers_the_smaller_share_of_wrong_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(world, "make_scene", lambda *address: asked.append(address) or SCENE)
    pairs = ((TRUE, HALF), (FALSE, HALF), (HALF, HALF), ("", FALSE))
    comparisons = [Comparison("7/0#1", [], "Describe the image.", *pair) for pair in pairs]
    assert world.truthful(comparisons) == [0, 1, None, 0]
    assert set(asked) == {("uniform", 7, world.PAIR_SEED)}


def test_a_mixture_has_its_records_and_the_noise_of_its_references() -> None:
    all_of_it = Mixture(both=True)
    for mixture in (all_of_it, Mixture(), Mixture(questions=False), Mixture(captions=False)):
        assert len(mixture.records(6, BIASED)) == 6 * mixture.records_per_image
    records = all_of_it.records(40, CLEAN)
    assert [record["topic"] for record in records[:5]] == ["caption", "object", "object", "colour", "both"]
    assert not any(wrong_mentions(record["chosen"], world.scene_of(record["key"])) for record in records)
    true_answers = replace(all_of_it, true_answers=True).records(40, BIASED)
    wrong = [one["topic"] for one in true_answers if wrong_mentions(one["chosen"], world.scene_of(one["key"]))]
    assert set(wrong) == {"caption"}


def test_rules_make_rejected_responses_that_are_false() -> None:
    records = Mixture(both=True).records(40, CLEAN)
    captions = {record["chosen"] for record in records if record["topic"] == "caption"}
    found = {
        name: rule(None, records)
        for name, rule in {
            "others": rejected.other_captions,
            "flipped": rejected.flipped_answers,
            "both": rejected.others_and_flipped,
            "oracle": rejected.corrupted,
        }.items()
    }
    for number, record in enumerate(records):
        others, flipped, both, oracle = (found[name][number] for name in ("others", "flipped", "both", "oracle"))
        scene, is_caption = world.scene_of(record["key"]), record["topic"] == "caption"
        assert (others in captions - {record["chosen"]}) if is_caption else others == record["chosen"]
        assert (flipped == record["chosen"]) == is_caption
        assert both == (others if is_caption else flipped)
        if not is_caption:
            assert wrong_mentions(flipped, scene) and wrong_mentions(oracle, scene)
            assert [one.kind for one in mentions(oracle)] == [one.kind for one in mentions(record["chosen"])]
    corrupted = [is_wrong(text, world.scene_of(one["key"])) for text, one in zip(found["oracle"], records, strict=True)]
    assert sum(corrupted[::5]) > 30  # half of 4 to 6 sentences: less than 1 in 16 captions stay as they are


def test_a_swapped_answer_can_be_left_out() -> None:
    model, processor = miniature.load()
    records = Mixture(captions=False).records(8, CLEAN)
    start = rejected.Start(model, processor, 0)
    every, kept = (rejected.bdhs(swapped=swapped)(start, records) for swapped in (True, False))
    left_out = 0
    for text, other, record in zip(every, kept, records, strict=True):
        if world.leading_answer(text) == world.leading_answer(record["chosen"]):
            assert other == text
        else:
            assert other in (text, record["chosen"])  # an unguided response may change its answer by itself
            left_out += other == record["chosen"]
    assert left_out > 3  # of 16 answers half are swapped, and drawn again where nothing else changes


def test_captions_and_colours_count_what_is_false() -> None:
    row = Captioned("0", Path("0.png"), "Describe the image.", frozenset({"boat", "fish"}), ())
    captions = Captions((row,), VOCABULARY, None, (SCENE,))
    (found,) = captions.outcomes({"0": f"{FALSE} The fish is blue. The fish is black."}, {})
    assert found.counts["wrong"] == (3, 4) and found.counts["colours"] == (2, 4)
    assert found.counts["chair_i"] == (1, 4) and found.counts["recall"] == (2, 2)
    colours = Colours((("0/boat", Path("0.png"), "boat", "red"), ("0/fish", Path("0.png"), "fish", "blue")))
    assert [one.text for one in colours.questions()] == ["What colour is the boat?", "What colour is the fish?"]
    right = colours.outcomes({"0/boat": TRUE, "0/fish": "The fish is red."}, {})
    assert [one.counts["accuracy"] for one in right] == [(True, 1), (False, 1)]


def test_a_judge_counts_every_question_of_an_image() -> None:
    outcomes = judge(*miniature.load(), "validation", 3, seed=0)
    assert [one.id for one in outcomes] == ["0000.png", "0001.png", "0002.png"]
    for one in outcomes:
        assert set(alignment_tables.METRICS) <= one.counts.keys()
        assert one.counts["random accuracy"][1] == 8 and one.counts["colours accuracy"][1] == 2
        assert one.counts["sampled length"][1] == 1


def _row(run: Run, wrong: list[int]) -> dict[str, Any]:
    """A run whose metrics are all this many of 10 on each image."""
    counts = [dict.fromkeys(alignment_tables.METRICS, (one, 10)) for one in wrong]
    outcomes = [Outcome(f"{number}", f"{number}", (), one) for number, one in enumerate(counts)]
    return {"run": asdict(run), "cpu_minutes": [1.0, 0.5], **packed(outcomes)}


def test_runs_are_kept_even_where_the_last_line_was_torn(tmp_path: Path) -> None:
    first, second = Run(BDHS, 0), Run(SFT, 1, bias=0.0)
    file = RunFile(tmp_path / "runs.jsonl")
    for run in (first, second):
        file.add(_row(run, [1, 2, 3]))
    path = tmp_path / "runs.jsonl"
    path.write_text(path.read_text()[:-9])
    again = RunFile(path)
    assert list(again.rows) == [first]
    again.add(_row(second, [4, 5, 6]))
    rows = RunFile(path).rows
    assert list(rows) == [first, second]
    assert [one.counts["sampled wrong"] for one in unpacked(rows[second], images=2)] == [(4, 10), (5, 10)]
    file.write(tmp_path / "final.jsonl", [second])
    assert [json.loads(line)["run"]["method"] for line in (tmp_path / "final.jsonl").open()] == [SFT]


def test_differences_pair_images_and_keep_bases_apart() -> None:
    rows = {Run(BDHS, 0, judged=4): [1, 2, 3, 4], Run(BDHS, 1, judged=4): [3, 4, 5, 6]}
    rows |= {Run(SFT, 0): [2, 3, 4, 5, 9], Run(SFT, 1): [4, 5, 6, 7, 9], Run(SFT, 2): [0] * 5}
    rows = {run: _row(run, wrong) for run, wrong in rows.items()}
    found = alignment_tables.difference(rows, Run(BDHS, 0, judged=4), Run(SFT, 0))
    assert (found["method"], found["minus"], found["bases"]) == (BDHS, SFT, 2)
    interval, each = found["sampled wrong"]  # each image differs by 1 of 10, so every draw does
    assert interval == pytest.approx([-0.1] * 3) and each == pytest.approx([-0.1] * 2)
    level = alignment_tables.levels(rows, Run(SFT, 0))
    assert level["bases"] == 3 and level["random accuracy"] == pytest.approx((23 + 31 + 0) / 150)
    assert level["of_bases"]["random accuracy"] == [0.46, 0.62, 0.0] and level["minutes"] == 1.5


def test_what_holds_is_bold() -> None:
    sure = ([-0.2, -0.25, -0.15], [-0.19, -0.2, -0.21])
    assert page.shown_difference(sure) == "−.200 [−.250, −.150] ± .025"
    assert page.holds(sure)
    for unsure in (([-0.2, -0.4, 0.1], sure[1]), (sure[0], [-0.5, 0.1, -0.2]), (sure[0], [-0.5, -0.01, -0.09])):
        assert not page.holds(unsure)
    assert page.holds((sure[0], [-0.2])) and page.shown_difference((sure[0], [-0.2])) == "−.200 [−.250, −.150]"


def test_the_baseline_counts_on_the_bases_of_its_table_alone() -> None:
    rows = {Run(BASELINE, 0): [4, 4], Run(BASELINE, 1): [6, 6]}
    rows |= {Run(method, 0, bias): [2, 2] for method in MAIN for bias in (0.0, 1.0)}
    rows |= {Run(method, 1): [4, 4] for method in MAIN}
    kept = {run: _row(run, wrong) for run, wrong in rows.items()}
    levels = [alignment_tables.levels(kept, run) for run in kept if run.base == 0]
    biased, true = page.main_rows(levels, 1.0), page.main_rows(levels, 0.0)
    assert [row["method"] for row in biased] == [row["method"] for row in true] == [BASELINE, *MAIN]
    shown = [side[place]["sampled wrong"] for side in (biased, true) for place in (0, -1)]
    assert shown == pytest.approx([0.5, 0.3, 0.4, 0.2])
    summary = page._summary(biased, true).splitlines()
    assert summary[2] == f"|{BASELINE}{'|.500|.400' * 3}|" and summary[-1] == f"|{BDHS}{'|.300|.200' * 3}|"
    assert len(summary) == 2 + 6


def test_the_plan_has_every_method_once_and_the_main_ones_first() -> None:
    runs = alignment.plan()
    assert len(set(runs)) == len(runs) and {run.method for run in runs} == {BASELINE, *MAIN, *MORE}
    main = len(alignment.BASE_NUMBERS) * (1 + len(MAIN))
    assert all(run.method in (BASELINE, *MAIN) and run.bias == 1 for run in runs[:main])
    assert {run.world for run in runs} == {"balanced"}


def test_the_quick_run_fails_where_bdhs_does_not_help() -> None:
    rates = {BASELINE: 0.5, CONTROL: 0.5, BDHS: 0.39}
    alignment.require_help([{"method": name, "greedy wrong": rate} for name, rate in rates.items()])
    rates[CONTROL] = 0.48
    with pytest.raises(SystemExit, match="a fifth fewer wrong claims"):
        alignment.require_help([{"method": name, "greedy wrong": rate} for name, rate in rates.items()])
