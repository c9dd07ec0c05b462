"""Responses of the current policy with rewards, for reinforcement learning (section 5.5 of arXiv 2407.02477)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any, ClassVar, NamedTuple

from torch import nn

from mmbdhs.checks import above_zero, finite_number, instance, integer
from mmbdhs.data import Images, Prompt, as_response, is_null
from mmbdhs.errors import ExampleError
from mmbdhs.runs import processor_fingerprint
from mmbdhs.sampling import BDHSFailure, SampledResponse, SamplingConfig, sample_responses
from mmbdhs.training.annotators import Annotator, Comparison
from mmbdhs.training.pair_sources import (
    Candidates,
    Examples,
    Found,
    RewardError,
    TrainingExample,
    failure_error,
    images_and_prompts,
)
from mmbdhs.vlm import VLM, Processor, TextRule, text_rule

_STORED = ("chosen", "rejected")
_TOGETHER = 16  # records whose stored responses are scored in one call


class Rollout(NamedTuple):
    """Responses to one prompt, to be scored.

    key: names them in error messages.
    images, prompt: as `bdhs_sample` takes them.
    responses: their texts, which may be empty.
    record: the whole record, with whatever else a reward may read.
    """

    key: int | str
    images: Images
    prompt: Prompt
    responses: tuple[str, ...]
    record: Mapping[str, Any]


Reward = Callable[[Sequence[Rollout]], Sequence[Sequence[float]]]
"""Any callable that returns, for each rollout, a reward of each of its responses.

A reward may have the attribute `processor`, which then has to be the policy's; a `RewardModel` has it."""


class RewardStatistics(NamedTuple):
    """Mean and standard deviation by which rewards are normalised."""

    mean: float
    std: float


@dataclass(frozen=True)
class AnnotatorReward:
    """An annotator as a reward: the share of the other responses to the prompt that a response beats. An undecided
    comparison counts one half to both.

    annotator: is asked about each two responses once.
    """

    annotator: Annotator

    def __call__(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        pairs = [(number, *pair) for number, one in enumerate(rollouts) for pair in _pairs(one)]
        verdicts = self.annotator([_comparison(rollouts[number], *pair) for number, *pair in pairs]) if pairs else []
        wins = [[0.0] * len(one.responses) for one in rollouts]
        for (number, *pair), better in zip(pairs, verdicts, strict=True):
            for place, response in enumerate(pair):
                wins[number][response] += 0.5 if better is None else float(better == place)
        return [[won / (len(one) - 1) for won in one] for one in wins]


@dataclass
class RolloutSource:
    """Several responses of the current policy to each prompt, with rewards. Records need no responses.

    All image tokens are visible, the prompt is prefilled once, and its responses are decoded together. Draws depend on
    the seed of `sampling`, the record's key and the epoch.

    reward: scores the responses; a `RewardModel`, an `AnnotatorReward` or your own.
    num_generations: responses to each prompt, at least 2.
    sampling: how they are drawn. Temperature 1, top_p 1 and top_k 0 are needed, because the policy learns from the
        distribution that it is sampled from.
    statistics: by which rewards are normalised. None to take them before the first step from the responses that are
        stored in the records, as the paper does; they are part of every checkpoint. (0, 1) leaves rewards as they are.

    There is nothing to learn from where a response spells tokens that are not text, which no reward model could read.

    Raises ValueError for settings out of range. A call raises RewardError, which names the example, for rewards that
    are not one finite number for each response, and ValueError for a reward model with another processor.
    """

    reward: Reward
    num_generations: int = 4
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    statistics: RewardStatistics | None = None
    columns: ClassVar[tuple[str, ...]] = ()
    gives_rewards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        instance("sampling", self.sampling, SamplingConfig)
        integer("num_generations", self.num_generations, 2)
        if not callable(self.reward):
            raise TypeError(f"reward: needs a function of rollouts or a RewardModel, got {self.reward!r}")
        drawn = (self.sampling.temperature, self.sampling.top_p, self.sampling.top_k)
        if drawn != (1, 1, 0):
            raise ValueError(f"sampling: needs temperature 1, top_p 1 and top_k 0 for rollouts, got {drawn}")
        if self.statistics is not None:
            finite_number(mean=self.statistics.mean)
            above_zero(std=self.statistics.std)
        self._live = self.statistics
        self._is_checked = False

    def begin(self, model: nn.Module, processor: Processor, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The statistics by which the run normalises its rewards. Raises ValueError where records have no responses."""
        self._check_processor(processor)
        found = self.statistics or reward_statistics(self.reward, records)
        return found._asdict()

    def resume(self, state: Mapping[str, float]) -> None:
        """Go on with the statistics that `begin` found."""
        self._live = RewardStatistics(**state)

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        self._check_processor(processor)
        keys, asked = [example.address for example in examples], images_and_prompts(examples)
        sampled = sample_responses(
            model, processor, *asked, self.sampling, self.num_generations, keys=keys, on_error="skip"
        )
        rule = text_rule(VLM.of(model), processor)
        usable = {
            number: found
            for number, found in enumerate(sampled)
            if not isinstance(found, BDHSFailure) and _are_texts(rule, found)
        }
        rollouts = [_rollout(examples[number], [one.text for one in found]) for number, found in usable.items()]
        results: list[Found] = [failure_error(one) if isinstance(one, BDHSFailure) else None for one in sampled]
        for (number, found), rewards in zip(usable.items(), scored(self.reward, rollouts), strict=True):
            results[number] = self._candidates(found, rewards)
        return results

    def _candidates(self, found: Sequence[SampledResponse], rewards: tuple[float, ...]) -> Candidates:
        if self._live is None:
            raise ValueError("statistics: need begin or resume before the first call, or statistics of your own")
        mean, std = self._live
        return Candidates(
            responses=tuple(one.text for one in found),
            rewards=tuple((reward - mean) / std for reward in rewards),
            raw_rewards=rewards,
            response_ids=tuple(one.scored_ids for one in found),
        )

    def _check_processor(self, processor: Processor) -> None:
        own = getattr(self.reward, "processor", None)
        if own is not None and not self._is_checked and processor_fingerprint(own) != processor_fingerprint(processor):
            raise ValueError(
                "reward: needs a reward model with the policy's processor, got one with another tokenizer, chat "
                "template or image processor"
            )
        self._is_checked = True


def reward_statistics(reward: Reward, records: Iterable[Mapping[str, Any]]) -> RewardStatistics:
    """Mean and standard deviation of the rewards of the responses that records store as chosen and rejected.

    Raises ValueError for records without responses, and for rewards that are all equal.
    """
    rollouts = (one for row, record in enumerate(records) if (one := _stored_rollout(record, row)).responses)
    found: list[float] = []
    while some := list(islice(rollouts, _TOGETHER)):
        found += [value for values in scored(reward, some) for value in values]
    if not found:
        raise ValueError(
            "statistics: need records with chosen or rejected responses whose rewards they are taken from, or "
            "RewardStatistics(mean, std), got neither"
        )
    std = statistics.pstdev(found)
    if not std:
        raise ValueError(
            f"reward: needs rewards that differ over the {len(found)} stored responses, all are {found[0]}"
        )
    return RewardStatistics(statistics.fmean(found), std)


def scored(reward: Reward, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]]:
    """The rewards of all responses. Raises RewardError, with the key, for anything but one finite number for each."""
    if not rollouts:
        return []
    found = list(reward(rollouts))
    if len(found) != len(rollouts):
        raise RewardError(f"reward: needs a list for each of {len(rollouts)} prompts, got {len(found)}")
    rewards = []
    for rollout, values in zip(rollouts, found, strict=True):
        numbers = tuple(float(value) for value in values)
        if len(numbers) != len(rollout.responses) or not all(map(math.isfinite, numbers)):
            raise RewardError(
                f"reward: needs {len(rollout.responses)} finite numbers for example {rollout.key!r}, got {numbers}"
            )
        rewards.append(numbers)
    return rewards


def _are_texts(rule: TextRule, found: Sequence[SampledResponse]) -> bool:
    """Whether all of the responses can be read as text; empty ones can."""
    try:
        for one in found:
            rule.require_text("the policy's response", one.text)
    except ExampleError:
        return False
    return True


def _rollout(example: TrainingExample, texts: Iterable[str]) -> Rollout:
    record = example.record
    (images,), (prompt,) = images_and_prompts([example])
    return Rollout(example.key, images, prompt, tuple(texts), record)


def _stored_rollout(record: Mapping[str, Any], row: int) -> Rollout:
    """The responses that the record stores."""
    key: Any = record.get("key")
    key = str(row) if is_null(key) else key
    texts = [as_response(record[name], name) for name in _STORED if not is_null(record.get(name))]
    if several := [text for text in texts if not isinstance(text, str)]:
        raise ExampleError(f"example {key!r}: needs responses of one turn to be scored, got {len(several[0])} messages")
    return _rollout(TrainingExample(record, key, 0), [str(text) for text in texts])


def _pairs(rollout: Rollout) -> Iterator[tuple[int, int]]:
    if len(rollout.responses) < 2:
        raise ValueError(f"annotator: needs two responses or more to compare, example {rollout.key!r} has one")
    return combinations(range(len(rollout.responses)), 2)


def _comparison(rollout: Rollout, first: int, second: int) -> Comparison:
    texts = rollout.responses
    return Comparison(rollout.key, rollout.images, rollout.prompt, texts[first], texts[second])
