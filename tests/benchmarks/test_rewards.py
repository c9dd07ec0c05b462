"""The pairs and rewards of the benchmark of rewards, by hand."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import alignment_runs
import pytest
import reward_data as data
import reward_runs
import rewards
import torch
from alignment_rejected import Start
from alignment_tables import METRICS
from alignment_world import Mixture, scene_of
from reward_data import KINDS_OF_PAIRS, in_other_words, put_right, truthfulness
from reward_runs import ORACLE, kept
from rewards import BASELINE, METHODS
from table import Options

from mmbdhs.evaluation import Outcome
from mmbdhs.miniature.language import CLEAN, mentions, wrong_mentions
from mmbdhs.miniature.world import Scene, Thing
from mmbdhs.training import Rollout, TrainResult

SCENE = Scene("lake", (Thing("boat", "red", 0), Thing("fish", "blue", 4), Thing("tree", "green", 8)))
OPENING = "The image shows a lake."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The boat is red. The fish is blue. The tree is green.", 1),
        (OPENING, 0),
        ("", 0),
        (f"{OPENING} The boat is red.", 1 / 3),
        ("The boat is green. The cat is black.", 1 / 3 - 1),
        ("The boat is red. The boat is red. The boat is blue. The cup is white.", 1 / 3 - 1 / 2),
        ("The image shows a beach. The boat is red. The fish is blue.", 2 / 3),
    ],
)
def test_truth_is_what_is_named_less_what_is_wrong(text: str, expected: float) -> None:
    assert truthfulness(text, SCENE) == pytest.approx(expected)


def test_the_oracle_knows_the_scene_of_each_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "scene_of", {"7/0": SCENE}.__getitem__)
    rollout = Rollout("7/0", [], "Describe the image.", (OPENING, "The boat is red.", "The cat is red."), {})
    assert data.oracle([rollout]) == [[0, pytest.approx(1 / 3), -1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The boat is red. The fish is red.", "The boat is red. The fish is blue."),
        ("The cat is black. The fish is red.", "The boat is red. The fish is blue."),
        ("The tree is green. The cat is red. The cup is red.", "The tree is green. The boat is red. The fish is blue."),
        (
            "The fish is red. The tree is red. The boat is red. The cat is black.",
            "The fish is blue. The tree is green. The boat is red.",
        ),
        ("", ""),
    ],
)
def test_a_corrected_caption_is_true_and_no_shorter_than_it_must_be(text: str, expected: str) -> None:
    assert put_right(f"The image shows a beach. {text}", SCENE) == f"{OPENING} {expected}".strip()


def test_other_words_make_the_same_claims() -> None:
    text = f"{OPENING} The boat is red. The fish is blue."
    assert in_other_words(text) == f"{OPENING} One boat is red. One fish is blue."
    assert mentions(in_other_words(text)) == mentions(text)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Pairs of each kind, for a policy that says one thing that is true, one that is false, and some in between."""
    records = Mixture(questions=False).records(40, CLEAN)

    def sampled(start: Start, some: Sequence[Any]) -> list[list[str]]:
        thing = [scene_of(record["key"]).things[0] for record in some]
        false = ["The image shows a lake. The cat is mauve. The cup is mauve."] * len(some)
        true = [f"{OPENING} The {one.kind} is {one.colour}." for one in thing]
        return [list(four) for four in zip(false, true, true, false, strict=True)]

    monkeypatch.setattr(data, "_sampled", sampled)
    return data.pairs_of_each_kind(Start(None, None, 0), records)


def test_the_chosen_of_a_pair_is_the_truer_one(pairs: dict[str, list[dict[str, Any]]]) -> None:
    assert pairs.keys() == set(KINDS_OF_PAIRS)
    for kind, some in pairs.items():
        assert len(some) > 30
        for pair in some:
            chosen, rejected = (truthfulness(pair[name], scene_of(pair["key"])) for name in ("chosen", "rejected"))
            assert (
                chosen >= rejected + (data.MARGIN if kind == "rankings" else 0) and pair["chosen"] != pair["rejected"]
            )
            assert kind == "rankings" or not wrong_mentions(pair["chosen"], scene_of(pair["key"]))


def test_a_corruption_has_as_many_sentences(pairs: dict[str, list[dict[str, Any]]]) -> None:
    for pair in pairs["corruptions"]:
        chosen, rejected = (pair[name].split(". ") for name in ("chosen", "rejected"))
        assert len(chosen) == len(rejected) and chosen[0] == rejected[0]


@pytest.mark.parametrize(("kind", "styled"), [("*", "chosen"), ("†", "rejected")])
def test_only_words_differ_between_a_kind_and_its_styled_variant(
    kind: str, styled: str, pairs: dict[str, list[dict[str, Any]]]
) -> None:
    other = {"chosen": "rejected", "rejected": "chosen"}[styled]
    for plain, changed in zip(pairs["corruptions"], pairs[f"corruptions{kind}"], strict=True):
        assert changed[other] == plain[other]
        assert changed[styled] != plain[styled] and mentions(changed[styled]) == mentions(plain[styled])


def test_captions_of_nearly_the_same_truth_are_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "scene_of", {"7/0": SCENE}.__getitem__)
    record = {"key": "7/0", "prompt": "Describe the image."}
    one, two, false = "The boat is red.", "The boat is red. The fish is blue.", "The cat is red."
    near = data.ranked(record, [one, two, one, two])
    assert near["chosen"] == near["rejected"]
    far = data.ranked(record, [one, two, false, one])
    assert (far["chosen"], far["rejected"]) == (two, false)


def test_a_run_that_has_ended_is_not_made_again(tmp_path: Path) -> None:
    made: list[int] = []
    for _ in range(2):
        assert kept(tmp_path / "new" / "run.json", lambda: made.append(1) or {"value": 0.1}) == {"value": 0.1}
    assert made == [1]


def test_a_model_whose_training_was_interrupted_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = TrainResult(None, 1, tmp_path, signal.SIGTERM)
    monkeypatch.setattr(alignment_runs, "train", lambda *_: interrupted)
    (tmp_path / "pairs-0.json").write_text('[{"rankings": []}, {}]')
    with pytest.raises(SystemExit, match="ended by SIGTERM"):
        reward_runs.Study(tmp_path).accuracies("rankings", 0)
    assert not (tmp_path / "rankings-0").exists()


def test_every_reward_of_a_policy_exists() -> None:
    assert {method.reward for method in METHODS.values()} <= {ORACLE, *KINDS_OF_PAIRS}
    assert set(rewards.QUICK_METHODS) <= METHODS.keys() and next(iter(METHODS)) == BASELINE


def _outcomes(share: float) -> list[Outcome]:
    """Four images, on which all metrics are this share."""
    return [Outcome(f"{number}", f"{number}", (), dict.fromkeys(METRICS, (10 * share, 10))) for number in range(4)]


def test_policies_are_compared_with_the_baseline_of_their_seed() -> None:
    runs = {
        BASELINE: [(_outcomes(0.6), 0.0), (_outcomes(0.4), 0.0)],
        "RLOO": [(_outcomes(0.3), 1), (_outcomes(0.2), 2)],
    }
    found = rewards.page_tables([], rewards.add_policies(iter(runs.items()), Options(True, torch.device("cpu"))))
    assert found["rewards"].splitlines()[2:] == [
        f"|{BASELINE}|.500|.500|.500|.500|.500|",
        "|RLOO|.250|.250|.250|.250|.250|",
    ]
    (row,) = found["rewards differences"].splitlines()[2:]
    assert row.split("|")[2].startswith("**−.250 [−.250, −.250] ± ")  # by −.3 and −.2, the same on each image


def test_captions_without_objects_have_no_rate_of_wrong_claims() -> None:
    silent = [replace(one, counts=one.counts | {"sampled wrong": (0, 0)}) for one in _outcomes(0.2)]
    runs = {BASELINE: [(_outcomes(0.6), 0.0)], "RLOO": [(silent, 1)]}
    rows = rewards.add_policies(iter(runs.items()), Options(True, torch.device("cpu")))
    found = rewards.page_tables([], rows)
    assert rows[1]["sampled wrong"] is None and rows[1]["differences"]["sampled wrong"] is None
    assert found["rewards"].splitlines()[3] == "|RLOO|–|.200|.200|.200|.200|"
    assert found["rewards differences"].splitlines()[2].startswith("|RLOO|–|**−.400 [")


def test_accuracies_are_means_in_percent() -> None:
    runs = [dict.fromkeys(KINDS_OF_PAIRS, share) for share in (0.7, 0.8, 0.9)]
    rows = rewards.add_accuracies(iter([("rankings", runs)]), Options(True, torch.device("cpu")))
    found = rewards.page_tables(rows, [])
    assert found["reward models"].splitlines()[2] == "|rankings" + "|80 ± 10" * len(KINDS_OF_PAIRS) + "|"
