"""Runs compared: on cases worked out by hand, and the bootstrap by how often its intervals hold the truth."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from mmbdhs.evaluation import Outcome
from mmbdhs.evaluation.compare import StoredRun, compare, find_runs


def outcomes(values: dict[str, tuple[float, float]], group: str = "g") -> list[Outcome]:
    """One outcome for each (y, x); the id's first letter is its image."""
    return [Outcome(name, name[0], (group,), {"metric": pair}) for name, pair in values.items()]


FIRST = outcomes({"a1": (1, 1), "a2": (0, 1), "b1": (0, 2), "c1": (0, 0)})
SECOND = outcomes({"a1": (0, 1), "a2": (1, 1), "b1": (2, 2), "c1": (1, 1)})


def test_differences_are_those_worked_out_by_hand() -> None:
    whole, group = compare(FIRST, SECOND)
    assert (whole.group, group.group, whole.metric) == ("all", "g", "metric")
    assert (whole.first.value, whole.second.value, whole.difference.value) == (1 / 4, 4 / 5, 4 / 5 - 1 / 4)
    assert (whole.higher, whole.lower) == (2, 1)  # c1 has no value in the first run
    # 27 draws of three images: those of a alone are 1/2 in both runs, those of b alone 0 and 1, c alone has no value.
    assert whole.difference.low == 0 and whole.difference.high == 1
    assert replace(whole, group="g") == group


def test_a_run_equals_itself() -> None:
    for one in compare(FIRST, FIRST[::-1]):
        assert (one.difference.value, one.difference.low, one.difference.high) == (0, 0, 0)
        assert one.higher == one.lower == 0


def test_neither_order_nor_pieces_of_the_draws_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compare(FIRST, SECOND)
    mixed = random.Random(0).sample(SECOND, len(SECOND))
    assert compare(FIRST, mixed) == expected
    monkeypatch.setattr(import_module("mmbdhs.evaluation.compare"), "_AT_ONCE", 3 * 7)
    assert compare(FIRST, SECOND)[0].first == expected[0].first
    assert compare(FIRST, SECOND)[0].difference.low == pytest.approx(expected[0].difference.low, abs=0.05)


def test_the_interval_holds_the_truth_in_95_of_100_cases() -> None:
    """60 images of 1 to 6 questions. How hard these are is the image's, and so is whether the second run does better:
    by 0.4 on one image in four.

    In 1,000 samples the share of intervals that hold the true difference, 0.1, is off 0.94, what so few images give, by
    more than 0.025 with probability 1e-3.
    """
    rng, held = np.random.default_rng(0), []
    for _ in range(1000):
        first, second = [], []
        for image in range(60):
            easy, gain = rng.uniform(0, 0.6), 0.4 * (rng.uniform() < 0.25)
            for number, luck in enumerate(rng.uniform(0, 1, rng.integers(1, 7))):
                name = f"{image}/{number}"
                first.append(Outcome(name, str(image), (), {"right": (float(luck < easy), 1.0)}))
                second.append(Outcome(name, str(image), (), {"right": (float(luck < easy + gain), 1.0)}))
        (found,) = compare(first, second, draws=400, seed=1)
        held.append(found.difference.low <= 0.1 <= found.difference.high)
    assert np.mean(held) == pytest.approx(0.94, abs=0.025)


def test_runs_over_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="runs: need the same questions, 2 are in one alone: c1, d1"):
        compare(FIRST, [*SECOND[:3], replace(SECOND[3], id="d1")])
    for other in (replace(SECOND[3], image="d"), replace(SECOND[3], groups=()), replace(SECOND[3], counts={})):
        with pytest.raises(ValueError, match="runs: need the same benchmark, question 'c1' has another image"):
            compare(FIRST, [*SECOND[:3], other])
    with pytest.raises(ValueError, match="draws: needs a number above 0, got 0"):
        compare(FIRST, SECOND, draws=0)


def write_run(folder: Path, found: list[Outcome], **results: object) -> None:
    folder.mkdir(parents=True)
    rows = [{"id": o.id, "image": o.image, "groups": o.groups, "counts": o.counts} for o in found]
    (folder / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps(results))


def test_runs_are_found_and_read(tmp_path: Path) -> None:
    write_run(tmp_path / "out" / "pope", FIRST, judge=None)
    assert find_runs(tmp_path / "out") == find_runs(tmp_path / "out" / "pope") == {"pope": tmp_path / "out" / "pope"}
    assert StoredRun.read(tmp_path / "out" / "pope").outcomes == FIRST
    with pytest.raises(FileNotFoundError, match=r"needs a folder of mmbdhs evaluate with results\.json, found none"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "out" / "pope" / "outcomes.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs a finished run of mmbdhs evaluate, lacks outcomes\.jsonl"):
        StoredRun.read(tmp_path / "out" / "pope")
