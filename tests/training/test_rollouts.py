"""The source of reinforcement learning: what it samples, and how rewards are found, checked and normalised."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import fresh_miniature, full_run, scene_records

from mmbdhs.logprobs.packed import response_logps
from mmbdhs.losses import dpo_loss
from mmbdhs.sampling.config import SamplingConfig
from mmbdhs.sampling.responses import sample_responses
from mmbdhs.sampling.results import SampledResponse
from mmbdhs.training.annotators import Comparison
from mmbdhs.training.batches import unread_example
from mmbdhs.training.heads import REWARD_HEAD, add_head
from mmbdhs.training.objectives import pairwise
from mmbdhs.training.pair_sources import Candidates, MixedSource, RewardError, StoredSource, TrainingExample
from mmbdhs.training.reinforcement import ppo, rloo
from mmbdhs.training.reward_model import RewardModel
from mmbdhs.training.rollouts import (
    AnnotatorReward,
    RewardStatistics,
    Rollout,
    RolloutSource,
    reward_statistics,
    scored,
)
from mmbdhs.training.trainer import train

SHORT = SamplingConfig(max_new_tokens=6, seed=3)
AS_GIVEN = RewardStatistics(0.0, 1.0)


def lengths(rollouts: Sequence[Rollout]) -> list[list[float]]:
    return [[float(len(text)) for text in one.responses] for one in rollouts]


def examples(count: int) -> list[TrainingExample]:
    records = scene_records(count)
    return [unread_example(records, row).read() for row in range(count)]


def test_responses_are_those_of_sample_responses_with_their_tokens() -> None:
    model, processor = fresh_miniature()
    asked = examples(2)
    found = RolloutSource(lengths, sampling=SHORT, statistics=RewardStatistics(10.0, 4.0))(model, processor, asked)
    images, prompts = [one.record["images"] for one in asked], [one.record["prompt"] for one in asked]
    keys = [one.address for one in asked]
    for one, responses in zip(
        found, sample_responses(model, processor, images, prompts, SHORT, 4, keys=keys), strict=True
    ):
        assert isinstance(one, Candidates)
        assert one.responses == tuple(response.text for response in responses)
        assert one.raw_rewards == tuple(float(len(text)) for text in one.responses)
        assert one.rewards == tuple((len(text) - 10.0) / 4.0 for text in one.responses)
        ends = {processor.tokenizer.eos_token_id}
        for ids, response in zip(one.response_ids, responses, strict=True):
            assert tuple(ids[: len(response.response_ids)]) == response.response_ids
            assert len(ids) == 6 or set(ids[len(response.response_ids) :]) == ends


def test_responses_that_spell_other_tokens_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampled(*_: Any, **__: Any) -> list:
        return [
            [SampledResponse(key, text, (5,), 2) for text in ("A car.", last)]
            for key, last in ((0, ""), (1, "<image>"))
        ]

    monkeypatch.setattr("mmbdhs.training.rollouts.sample_responses", sampled)
    source = RolloutSource(lengths, num_generations=2, statistics=AS_GIVEN)
    first, second = source(*fresh_miniature(), examples(2))
    assert first.responses == ("A car.", "") and first.response_ids == ([5, 2], [5, 2]) and second is None


def test_log_probabilities_are_those_of_the_tokens_that_were_drawn(tmp_path: Path) -> None:
    """The loss sees the sampled tokens after the prompt that they were sampled from, not their text encoded again."""
    seen: list[Any] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(rloo(), name)

        def __call__(self, scores: Any, targets: Any) -> Any:
            seen.append(scores)
            return rloo()(scores, targets)

        def forward(self, model: Any, prompts: Any, ids: Any) -> Any:
            seen.append((prompts, ids))
            return rloo().forward(model, prompts, ids)

    model, processor = fresh_miniature()
    start = copy.deepcopy(model)
    source = RolloutSource(lengths, sampling=SHORT, statistics=AS_GIVEN)
    train(model, processor, scene_records(1), source, Spy(), full_run(tmp_path))
    (prompts, ids), scores = seen[:2]
    (found,) = source(start, processor, examples(1))
    assert ids[0] == list(found.response_ids)
    expected = response_logps(start, prompts, ids)
    torch.testing.assert_close(scores.logps.tokens.detach(), expected.tokens.detach())
    chosen = expected.tokens[expected.mask]
    assert float(chosen.detach().exp().min()) > 0 and float(chosen.detach().mean()) > -5


def test_statistics_are_those_of_the_stored_responses() -> None:
    records = [record | {"rejected": None} if row == 2 else record for row, record in enumerate(scene_records(20))]
    values = [float(len(record[name])) for record in records for name in ("chosen", "rejected") if record[name]]
    found = reward_statistics(lengths, records)
    assert found.mean == pytest.approx(statistics.fmean(values)) and found.std == pytest.approx(
        statistics.pstdev(values)
    )
    with pytest.raises(ValueError, match="statistics: need records with chosen or rejected responses"):
        reward_statistics(lengths, [{"images": [], "prompt": "?"}])
    with pytest.raises(ValueError, match=r"reward: needs rewards that differ over the 4 .* responses, all are 2\.0"):
        reward_statistics(lambda rollouts: [[2.0] * len(one.responses) for one in rollouts], scene_records(2))


def test_an_annotator_rewards_the_share_of_responses_that_one_beats() -> None:
    def longer(comparisons: Sequence[Comparison]) -> list[int | None]:
        pairs = [(len(one.first), len(one.second)) for one in comparisons]
        return [None if first == second else int(second > first) for first, second in pairs]

    rollouts = [Rollout(0, [], "?", ("a", "ccc", "bb", "dd"), {}), Rollout(1, [], "?", ("x", "yy"), {})]
    assert AnnotatorReward(longer)(rollouts) == [[0.0, 1.0, pytest.approx(0.5), pytest.approx(0.5)], [0.0, 1.0]]
    with pytest.raises(ValueError, match="annotator: needs two responses or more to compare, example 7 has one"):
        AnnotatorReward(longer)([Rollout(7, [], "?", ("a",), {})])


def test_a_reward_model_is_a_reward() -> None:
    model, processor = fresh_miniature()
    scorer = copy.deepcopy(model)
    add_head(scorer, REWARD_HEAD, seed=0)
    reward = RewardModel(scorer, processor)
    (found,) = RolloutSource(reward, sampling=SHORT, statistics=AS_GIVEN)(model, processor, examples(1))
    record = scene_records(1)[0]
    expected = reward.rewards(record["images"], record["prompt"], found.responses)
    assert list(found.rewards) == pytest.approx(expected, abs=1e-5) and len(set(found.rewards)) > 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_generations": 1}, ValueError, "num_generations: needs an integer of at least 2, got 1"),
        ({"reward": None}, TypeError, "reward: needs a function of rollouts or a RewardModel, got None"),
        ({"sampling": {}}, TypeError, "sampling: needs a SamplingConfig, got dict"),
        (
            {"sampling": SamplingConfig(temperature=0.7)},
            ValueError,
            "sampling: needs temperature 1, top_p 1 and top_k 0",
        ),
        ({"statistics": RewardStatistics(0.0, 0.0)}, ValueError, "std: needs a finite number above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        RolloutSource(**{"reward": lengths} | settings)


@pytest.mark.parametrize("wrong", [[[1.0, 2.0]], [[1.0, float("nan"), 0.0]], [[1.0, float("inf"), 0.0]]])
def test_wrong_rewards_are_named_by_key(wrong: list) -> None:
    rollout = Rollout("scene-5", [], "?", ("a", "b", "c"), {})
    with pytest.raises(RewardError, match=r"reward: needs 3 finite numbers for example 'scene-5', got \(1\.0, "):
        scored(lambda rollouts: wrong, [rollout])
    with pytest.raises(RewardError, match="reward: needs a list for each of 1 prompts, got 2"):
        scored(lambda rollouts: wrong * 2, [rollout])


def test_a_reward_model_of_another_processor_is_refused() -> None:
    model, processor = fresh_miniature()
    other = copy.deepcopy(processor)
    other.chat_template += " "
    add_head(model, REWARD_HEAD, seed=0)
    source = RolloutSource(RewardModel(model, other), sampling=SHORT)
    for call in (
        lambda: source.begin(model, processor, scene_records(1)),
        lambda: source(model, processor, examples(1)),
    ):
        with pytest.raises(ValueError, match="reward: needs a reward model with the policy's processor"):
            call()


def test_sources_and_objectives_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    model, processor = fresh_miniature()
    source = RolloutSource(lengths, sampling=SHORT)
    with pytest.raises(ValueError, match=r"objective: needs rloo\(\) or ppo\(\) for RolloutSource, got _Pairwise"):
        train(model, processor, scene_records(1), source, pairwise(dpo_loss), full_run(tmp_path))
    mixed = MixedSource(RolloutSource(lengths, sampling=SHORT, statistics=AS_GIVEN), StoredSource(), p=1.0)
    with pytest.raises(ValueError, match="source: needs pairs for this objective, got responses with rewards for exam"):
        train(model, processor, scene_records(1), mixed, pairwise(dpo_loss), full_run(tmp_path / "mixed"))
    with pytest.raises(ValueError, match="source: needs rewards for _PPO, as RolloutSource gives, got StoredSource"):
        train(model, processor, scene_records(1), StoredSource(), ppo(), full_run(tmp_path))

    def own(model: Any, processor: Any, examples: Sequence[TrainingExample]) -> list[Candidates]:
        return [Candidates(("A car.", "A dog."))] * len(examples)

    with pytest.raises(ValueError, match=r"source: needs a reward of each response .*, got none for example 'scene-0'"):
        train(model, processor, scene_records(1), own, rloo(), full_run(tmp_path))
