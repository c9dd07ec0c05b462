"""Sources of the responses that a training step compares: stored in the data, or sampled from the current policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, cast

from torch import nn

from mmbdhs.checks import instance, number_in
from mmbdhs.data import ChatPrompt, Messages, as_response, key_address, load_images
from mmbdhs.errors import ExampleError
from mmbdhs.sampling import (
    BDHSConfig,
    BDHSFailure,
    Noise,
    SamplingConfig,
    Similarity,
    SimilarityModel,
    bdhs_sample,
    resolve_similarity,
    sample_responses,
)
from mmbdhs.training.annotators import Annotator, Comparison
from mmbdhs.vlm import VLM, Processor, TextRule, text_rule


class RewardError(ValueError):
    """Rewards that cannot be learned from: NaN or infinite, or not one for each response."""


@dataclass(frozen=True)
class TrainingExample:
    """A record in one epoch.

    record: in TRL's vision preference layout, with images, prompt, and chosen and rejected if the source needs them.
    key: the record's "key", or its row number as a string.
    epoch: 0 in the first epoch.
    """

    record: Mapping[str, Any]
    key: int | str
    epoch: int

    @property
    def address(self) -> str:
        """The key of this example's random draws, which differ from epoch to epoch."""
        return f"{self.key}#{self.epoch}"


Examples = Sequence[TrainingExample]
Texts = tuple[str, str]


class Candidates(NamedTuple):
    """The responses to one prompt that an objective compares.

    responses: the chosen response, then the others; text, or messages of several turns.
    reference_logps: the log-probability of each response under the reference model in nats; None if unknown.
    distorted: noise on the example's images. What a model predicts over noisy images after each part of the chosen
        response is one more candidate, scored with the clean images where it was predicted; with `mdpo_loss` it is the
        chosen response that is scored over noisy images. None for no such candidate.
    rewards: a reward of each response, from which reinforcement learning learns; for a pair of a reward model (margin,
        0), where the data says by how much the chosen response is better. None if unknown.
    raw_rewards: the rewards before they were normalised; None if they were not.
    response_ids: the tokens of each response that was sampled, with the end of sequence. None to encode the texts.
    """

    responses: tuple[str | Messages, ...]
    reference_logps: tuple[float, ...] | None = None
    distorted: Noise | None = None
    rewards: tuple[float, ...] | None = None
    raw_rewards: tuple[float, ...] | None = None
    response_ids: tuple[list[int], ...] | None = None


Found = Candidates | ExampleError | None
"""What a source finds for an example: candidates, an error if it cannot be used (`TrainConfig.on_error` says what
follows), or None if there is nothing to learn from."""


class PairSource(Protocol):
    """Any callable that returns what it finds for each example.

    model: the current policy, in evaluation mode.

    A source may have these attributes:
    columns: the columns that records need besides `images` and `prompt`.
    stored_reference: True if the source passes on `reference_logps` wherever a record has them.
    offline: True if the source does not use the model. A sharded model is not gathered for it, and it is asked about
        one example at a time, ahead of the step and in several threads.
    gives_rewards: True if its responses have rewards and no order, as reinforcement learning needs them.
    begin: a function of model, processor and an iterator of records, called once before the first step of a run in the
        main process. What it returns, a dict of plain values, is stored in every checkpoint.
    resume: called with that dict, in all processes, at the start of a run and when it is resumed.
    """

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]: ...


def columns_of(source: PairSource) -> tuple[str, ...]:
    """The columns that the source declares to need in each record besides `images` and `prompt`."""
    return getattr(source, "columns", ())


def is_offline(source: PairSource) -> bool:
    """Whether the source declares that it does not use the model."""
    return getattr(source, "offline", False)


def gives_rewards(source: PairSource) -> bool:
    """Whether the source declares that its responses have rewards and no order."""
    return getattr(source, "gives_rewards", False)


def needed_columns(source: PairSource) -> tuple[str, ...]:
    """All columns that records need for the source."""
    return "images", "prompt", *columns_of(source)


@dataclass(frozen=True)
class StoredSource:
    """The record's chosen and rejected responses, with its `reference_logps` and its `margin` if it has them."""

    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    stored_reference: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        return [self._pair(example) for example in examples]

    def _pair(self, example: TrainingExample) -> Found:
        found, margin = _stored(example, self.columns, _reference_logps(example.record)), example.record.get("margin")
        if margin is None or not isinstance(found, Candidates):
            return found
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
            return ExampleError(f"margin: needs a finite number, got {margin!r}")
        return found._replace(rewards=(float(margin), 0.0))


@dataclass(frozen=True)
class SupervisedSource:
    """The record's chosen response alone."""

    columns: ClassVar[tuple[str, ...]] = ("chosen",)
    offline: ClassVar[bool] = True

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        return [_stored(example, self.columns) for example in examples]


@dataclass(frozen=True)
class OnlineBDHSSource:
    """Online-BDHS: the chosen response against one that the current policy completes with restricted image access.

    config: settings of `bdhs_sample`.
    similarity: as `bdhs_sample` takes it; loaded once.
    with_stored: also compare with the record's rejected response (Eq. 5).
    """

    config: BDHSConfig = field(default_factory=BDHSConfig)
    similarity: SimilarityModel = None
    with_stored: bool = False

    def __post_init__(self) -> None:
        instance("config", self.config, BDHSConfig)

    @cached_property
    def _similarity(self) -> Similarity:
        return resolve_similarity(self.similarity)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("chosen", "rejected") if self.with_stored else ("chosen",)

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        found = [_stored(example, self.columns) for example in examples]
        usable = [number for number, one in enumerate(found) if isinstance(one, Candidates)]
        stored = [cast("Candidates", found[number]) for number in usable]
        asked, chosen = [examples[number] for number in usable], [one.responses[0] for one in stored]
        columns = *images_and_prompts(asked), cast("list[str]", chosen), self.config, self._similarity
        keys = [example.address for example in asked]
        samples = bdhs_sample(model, processor, *columns, keys=keys, on_error="skip") if asked else []
        for number, one, sample in zip(usable, stored, samples, strict=True):
            found[number] = _sampled(one, sample)
        return found


@dataclass(frozen=True)
class DistortedSource:
    """The distortion of section 3.3, as POVID's published loss has it: against the chosen response stands, token by
    token, what the model predicts over a noisy image after the chosen tokens before. Policy and reference score their
    own predictions, over the clean image and in the places where they were made; equal tokens cancel.

    With `pairwise(mdpo_loss)` the chosen response is compared with itself over the noisy image instead (mDPO).

    noise_steps: diffusion steps of noise on the image, with other noise in every epoch.
    seed: seed of the noise.
    with_stored: also compare with the record's rejected response (Eq. 5).
    noise_range: as in `BDHSConfig`; "wrap" is that of POVID's code.
    """

    noise_steps: int = 500
    seed: int = 0
    with_stored: bool = True
    noise_range: str = "clip"
    offline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._config  # noqa: B018  # raises for values out of range

    @property
    def _config(self) -> BDHSConfig:
        return BDHSConfig(noise_steps=self.noise_steps, noise_range=self.noise_range, seed=self.seed)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("chosen", "rejected") if self.with_stored else ("chosen",)

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        return [self._distorted(example) for example in examples]

    def _distorted(self, example: TrainingExample) -> Found:
        stored = _stored(example, self.columns)
        noise = self._config.noise(key_address(example.address), iteration=1)
        return stored._replace(distorted=noise) if isinstance(stored, Candidates) else stored


@dataclass(frozen=True)
class OnlinePairsSource:
    """Online-DPO: two responses of the current policy, ranked by an annotator. Records need no responses.

    There is nothing to learn from where the annotator is undecided or the two responses are equal.

    annotator: ranks the pairs.
    sampling: how the responses are drawn.
    """

    annotator: Annotator
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        instance("sampling", self.sampling, SamplingConfig)

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        pairs = self._drawn(model, processor, examples)
        found: list[Found] = [pair if isinstance(pair, ExampleError) else None for pair in pairs]
        rule = text_rule(VLM.of(model), processor)
        unlike = [number for number, pair in enumerate(pairs) if isinstance(pair, tuple) and _differ(rule, *pair)]
        comparisons = [_comparison(examples[number], *cast("Texts", pairs[number])) for number in unlike]
        for number, better in zip(unlike, self.annotator(comparisons) if comparisons else [], strict=True):
            if better is not None:
                texts = cast("Texts", pairs[number])
                found[number] = Candidates((texts[better], texts[1 - better]))
        return found

    def _drawn(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Texts | ExampleError | None]:
        """Two responses to each example's prompt."""
        keys = [(f"{example.address}/a", f"{example.address}/b") for example in examples]
        arguments = *images_and_prompts(examples), self.sampling
        found = sample_responses(model, processor, *arguments, num_return_sequences=2, keys=keys, on_error="skip")
        return [failure_error(one) if isinstance(one, BDHSFailure) else (one[0].text, one[1].text) for one in found]


@dataclass(frozen=True)
class MixedSource:
    """Mixed-DPO, Eq. 4: for each example one of two sources, drawn at random.

    first: the source drawn with probability p.
    second: the source drawn otherwise.
    p: in [0, 1].
    seed: seed of the draws.
    """

    first: PairSource
    second: PairSource
    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        number_in("p", self.p, 0, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*columns_of(self.first), *columns_of(self.second))))

    @property
    def offline(self) -> bool:
        return is_offline(self.first) and is_offline(self.second)

    def __call__(self, model: nn.Module, processor: Processor, examples: Examples) -> list[Found]:
        found: list[Found] = [None] * len(examples)
        draws = [self._draws_first(example) for example in examples]
        for source, is_first in ((self.first, True), (self.second, False)):
            numbers = [number for number, draw in enumerate(draws) if draw == is_first]
            candidates = source(model, processor, [examples[number] for number in numbers]) if numbers else []
            for number, one in zip(numbers, candidates, strict=True):
                found[number] = one
        return found

    def _draws_first(self, example: TrainingExample) -> bool:
        return key_address(f"mixed {self.seed} {example.address}") % 2**64 < self.p * 2**64


def _stored(
    example: TrainingExample, columns: Sequence[str], reference_logps: tuple[float, ...] | None = None
) -> Found:
    """The record's responses in these columns, or the error of the first that is none."""
    try:
        return Candidates(tuple(as_response(example.record[name], name) for name in columns), reference_logps)
    except ExampleError as error:
        return error


def _reference_logps(record: Mapping[str, Any]) -> tuple[float, ...] | None:
    values = record.get("reference_logps")
    return None if values is None else tuple(values)


def images_and_prompts(examples: Sequence[TrainingExample]) -> tuple[list[Any], list[ChatPrompt]]:
    """The images and the prompts of the examples."""
    return [example.record["images"] for example in examples], [ChatPrompt.of_record(one.record) for one in examples]


def _sampled(stored: Candidates, sample: Any) -> Found:
    """The stored responses and the sampled one."""
    if isinstance(sample, BDHSFailure):
        return failure_error(sample)
    return Candidates((*stored.responses, sample.rejected))


def failure_error(sample: BDHSFailure) -> ExampleError | None:
    """The error of a bad example, or None where the model gave no response to a good one."""
    return None if sample.no_response else ExampleError(sample.reason)


def _differ(rule: TextRule, first: str, second: str) -> bool:
    """Whether the two are different responses that can be trained on."""
    try:
        for text in (first, second):
            rule.require_response("the model's response", text)
    except ExampleError:
        return False
    return first != second


def _comparison(example: TrainingExample, first: str, second: str) -> Comparison:
    return Comparison(example.address, load_images(example.record["images"]), example.record["prompt"], first, second)
