"""Where the responses come from that a training step compares: from the data, or from the policy as it is by now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import nn

from mmbdhs.data import key_address, load_images
from mmbdhs.logprobs import response_text
from mmbdhs.sampling import (
    BDHSConfig,
    BDHSFailure,
    SamplingConfig,
    Similarity,
    bdhs_sample,
    povid_sample,
    resolve_similarity,
    sample_responses,
)
from mmbdhs.training.annotators import Annotator, Comparison


@dataclass(frozen=True)
class Visit:
    """An example at one of its visits.

    record: in TRL's vision preference layout: images, prompt, chosen, rejected, as far as the source needs them.
    key: the record's "key", or its row number as a string. visit: 0 in the first epoch, 1 in the second, ….
    """

    record: Mapping[str, Any]
    key: int | str
    visit: int

    @property
    def address(self) -> str:
        """Under which this visit's random draws stand: every visit draws afresh."""
        return f"{self.key}#{self.visit}"


class Candidates(NamedTuple):
    """texts: the chosen response, then the others. reference_logps: log p of each under the reference, if known."""

    texts: tuple[str, ...]
    reference_logps: tuple[float, ...] | None = None


class PairSource(Protocol):
    """For each visit its candidates, or None where there is nothing to learn. model: the policy, in evaluation mode.

    Any callable will do. It may say which `columns` records must have beside `images` and `prompt`, and with
    `stored_reference = True` that it hands on `reference_logps` wherever a record has them. A source with
    `offline = True` leaves the model alone, so that a sharded one need not be gathered for it.
    """

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]: ...


def columns_of(source: PairSource) -> tuple[str, ...]:
    """What the source needs in each record beside `images` and `prompt`, as far as it says so."""
    return getattr(source, "columns", ())


@dataclass(frozen=True)
class Stored:
    """The record's chosen and rejected responses, with its `reference_logps` if it has them."""

    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    stored_reference: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]:
        return [Candidates(_texts(visit, self.columns), _known(visit.record)) for visit in visits]


@dataclass(frozen=True)
class Supervised:
    """The record's chosen response alone."""

    columns: ClassVar[tuple[str, ...]] = ("chosen",)
    offline: ClassVar[bool] = True

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]:
        return [Candidates(_texts(visit, self.columns)) for visit in visits]


@dataclass(frozen=True)
class OnlineBDHS:
    """Online-BDHS: against the chosen response one that the current policy gives with restricted image access.

    with_stored: against the record's rejected one too, for Eq. 5. similarity: as `bdhs_sample` takes it; loaded once.
    on_error: "skip" leaves an example out that cannot be sampled.
    """

    config: BDHSConfig = field(default_factory=BDHSConfig)
    similarity: Any = None
    with_stored: bool = False
    on_error: str = "raise"

    @property
    def columns(self) -> tuple[str, ...]:
        return _compared(self.with_stored)

    @cached_property
    def _similarity(self) -> Similarity:
        return resolve_similarity(self.similarity)

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]:
        settings = {"config": self.config, "similarity": self._similarity, "on_error": self.on_error}
        return _with_samples(visits, self.columns, partial(bdhs_sample, model, processor, **settings))


@dataclass(frozen=True)
class Distorted:
    """The POVID-style distortion of section 3.3, by the current policy, at every visit with other noise."""

    noise_steps: int = 500
    seed: int = 0
    with_stored: bool = True
    on_error: str = "raise"

    @property
    def columns(self) -> tuple[str, ...]:
        return _compared(self.with_stored)

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]:
        settings = {"noise_steps": self.noise_steps, "seed": self.seed, "on_error": self.on_error}
        return _with_samples(visits, self.columns, partial(povid_sample, model, processor, **settings))


@dataclass(frozen=True)
class OnlinePairs:
    """Online-DPO: two responses of the current policy, ranked by an annotator; None where it is undecided or they are
    the same. Records need no responses.

    sampling: how the responses are drawn.
    """

    annotator: Annotator
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    columns: ClassVar[tuple[str, ...]] = ()

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]:
        pairs = self._drawn(model, processor, visits)
        unlike = [number for number, (first, second) in enumerate(pairs) if first and second and first != second]
        comparisons = [_comparison(visits[number], *pairs[number]) for number in unlike]
        found: list[Candidates | None] = [None] * len(visits)
        for number, better in zip(unlike, self.annotator(comparisons) if comparisons else [], strict=True):
            if better is not None:
                found[number] = Candidates((pairs[number][better], pairs[number][1 - better]))
        return found

    def _drawn(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[tuple[str, str]]:
        """Two responses for each visit."""
        keys = [(f"{visit.address}/a", f"{visit.address}/b") for visit in visits]
        found = sample_responses(model, processor, *_asked(visits), self.sampling, num_return_sequences=2, keys=keys)
        return [(first.text, second.text) for first, second in found]


@dataclass(frozen=True)
class Mixed:
    """Mixed-DPO, Eq. 4: each visit is served by the first source with probability p, else by the second."""

    first: PairSource
    second: PairSource
    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p: needs a number in [0, 1], got {self.p!r}")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*columns_of(self.first), *columns_of(self.second))))

    def __call__(self, model: nn.Module, processor: Any, visits: Sequence[Visit]) -> list[Candidates | None]:
        found: list[Candidates | None] = [None] * len(visits)
        for source, serves_first in ((self.first, True), (self.second, False)):
            numbers = [n for n, visit in enumerate(visits) if self._draws_first(visit) == serves_first]
            served = source(model, processor, [visits[n] for n in numbers]) if numbers else []
            for number, candidates in zip(numbers, served, strict=True):
                found[number] = candidates
        return found

    def _draws_first(self, visit: Visit) -> bool:
        return key_address(f"mixed {self.seed} {visit.address}") % 2**64 < self.p * 2**64


def _compared(with_stored: bool) -> tuple[str, ...]:
    return ("chosen", "rejected") if with_stored else ("chosen",)


def _texts(visit: Visit, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(response_text(visit.record[column]) for column in columns)


def _known(record: Mapping[str, Any]) -> tuple[float, ...] | None:
    values = record.get("reference_logps")
    return None if values is None else tuple(values)


def _asked(visits: Sequence[Visit]) -> tuple[list[Any], list[Any]]:
    return [visit.record["images"] for visit in visits], [visit.record["prompt"] for visit in visits]


def _with_samples(
    visits: Sequence[Visit], columns: Sequence[str], sample: Callable[..., list[Any]]
) -> list[Candidates | None]:
    """The stored responses, and behind them what `sample` makes of the chosen one."""
    stored = [_texts(visit, columns) for visit in visits]
    keys = [visit.address for visit in visits]
    samples = sample(*_asked(visits), [texts[0] for texts in stored], keys=keys)
    return [_with(*pair) for pair in zip(stored, samples, strict=True)]


def _with(stored: tuple[str, ...], sample: Any) -> Candidates | None:
    """Nothing for a sample that failed or has no text."""
    if isinstance(sample, BDHSFailure) or not sample.rejected.strip():
        return None
    return Candidates((*stored, sample.rejected))


def _comparison(visit: Visit, first: str, second: str) -> Comparison:
    return Comparison(visit.address, load_images(visit.record["images"]), visit.record["prompt"], first, second)
