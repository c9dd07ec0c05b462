"""What `tune` found: shares accepted by iteration, what similarity models see, and the settings that follow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from mmbdhs.data import write_whole
from mmbdhs.evaluation import Estimate, ratio, text_table
from mmbdhs.pairs.tune_plot import draw
from mmbdhs.runs import describe
from mmbdhs.sampling import BDHSConfig, leading_answer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_WITHIN = 0.02 + 1e-9  # of the best share; what is smaller, few records can tell
_EXAMPLES = 3
_WORD = re.compile(r"\w+")
_EMPTY_WORDS = frozenset(
    ("a", "an", "the", "this", "that", "these", "those", "there", "it", "s", "is", "are", "was", "were", "be", "and")
)


class Question(NamedTuple):
    """A record of the sample.

    prompt: the text of the last message.
    chosen: the reference.
    """

    prompt: str
    chosen: str


@dataclass(frozen=True)
class Candidate:
    """The response of one iteration.

    record: the number of its record.
    mask_threshold: ρ_th.
    iteration: from 1.
    guided: whether the reference guided it.
    text: the response.
    similarities: to the reference, by the name of the model.
    """

    record: int
    mask_threshold: float
    iteration: int
    guided: bool
    text: str
    similarities: Mapping[str, float]


class Setting(NamedTuple):
    """A similarity model and ε_s."""

    similarity: str
    similarity_threshold: float


class Recommendation(NamedTuple):
    """Settings, and why these.

    similarity: the name of the similarity model.
    similarity_threshold: ε_s.
    mask_threshold: ρ_th.
    reason: in plain sentences.
    """

    similarity: str
    similarity_threshold: float
    mask_threshold: float
    reason: str


class TuneReport:
    """The responses of every iteration under each ρ_th, and what follows from them for each ε_s and similarity model.

    Text (`str`) is a table with a row for each setting. Intervals are 95% intervals of shares of the population that
    the sample was taken from.

    questions: the records by their numbers.
    candidates: the responses.
    similarity_thresholds: the ε_s to read off.
    config: the other settings that were sampled with.
    """

    def __init__(
        self,
        questions: Mapping[int, Question],
        candidates: Sequence[Candidate],
        similarity_thresholds: Sequence[float],
        config: BDHSConfig,
    ) -> None:
        self.questions, self.candidates, self.config = dict(questions), list(candidates), config
        self.mask_thresholds = sorted({one.mask_threshold for one in candidates})
        self.settings = [Setting(n, e) for n in candidates[0].similarities for e in similarity_thresholds]
        self.iterations = config.max_iterations
        last_is_unguided = config.guided and self.iterations > 1
        self.guided_iterations = self.iterations - last_is_unguided

    def accepted_at(self, mask_threshold: float, setting: Setting) -> dict[int, int]:
        """The first iteration whose response is less similar than ε_s, by the number of each record that has one."""
        found: dict[int, int] = {}
        for one in self.candidates:
            if (
                one.mask_threshold == mask_threshold
                and one.similarities[setting.similarity] < setting.similarity_threshold
            ):
                found[one.record] = min(found.get(one.record, one.iteration), one.iteration)
        return found

    def accepted(self, mask_threshold: float, setting: Setting) -> list[Estimate]:
        """After 1, 2, … iterations, the share of records with a response that is less similar than ε_s (the paper's
        Figure 10), with Wilson's interval."""
        first = self.accepted_at(mask_threshold, setting)
        return [
            _share(first.get(record, self.iterations + 1) <= last for record in self.questions)
            for last in range(1, self.iterations + 1)
        ]

    @cached_property
    def flipped(self) -> list[Candidate]:
        """The responses that begin with yes where the reference begins with no, or the other way round."""
        return [one for one in self.candidates if is_flipped(self.questions[one.record].chosen, one.text)]

    @cached_property
    def restated(self) -> list[Candidate]:
        """The responses that say the reference in other words (`is_restated`)."""
        return [one for one in self.candidates if is_restated(self.questions[one.record].chosen, one.text)]

    def missed_flips(self, setting: Setting) -> Estimate:
        """The share of flipped answers that the model calls similar: with this ε_s they would be drawn again, although
        they say the opposite. Responses to one record are not independent, which widens the interval."""
        return _clustered(
            self.flipped, [one.similarities[setting.similarity] >= setting.similarity_threshold for one in self.flipped]
        )

    def accepted_restatements(self, setting: Setting) -> Estimate:
        """The share of restatements that the model calls different: with this ε_s they would become rejected responses,
        although they say what the reference says. Responses to one record are not independent, which widens the
        interval."""
        return _clustered(
            self.restated,
            [one.similarities[setting.similarity] < setting.similarity_threshold for one in self.restated],
        )

    def errors(self, setting: Setting) -> float:
        """The mean of the shares of flips missed and restatements accepted, as far as the sample has any; 0 if it has
        neither."""
        shares = self.missed_flips(setting), self.accepted_restatements(setting)
        return mean([share.value for share in shares if share.count] or [0.0])

    @cached_property
    def recommendation(self) -> Recommendation:
        """Settings by this rule, which keeps to the config's unless the sample speaks against them:

        1. Model and ε_s are judged by their errors (`errors`) on the responses whose meaning is known without a model:
           a flipped answer says something else, a restatement does not. Of the settings within 2 points of the fewest
           errors, those of the model that was named first are taken, and of these the ε_s nearest to the config's.
        2. With these, ρ_th is judged by the share accepted after all guided iterations. Of those within 2 points of the
           best, the one nearest to the config's is taken.
        """
        fewest = min(map(self.errors, self.settings))
        good = [one for one in self.settings if self.errors(one) <= fewest + _WITHIN]
        setting = min(
            (one for one in good if one.similarity == good[0].similarity),
            key=lambda one: _distance(one.similarity_threshold, self.config.similarity_threshold),
        )
        shares = {mask: self.accepted(mask, setting)[self.guided_iterations - 1] for mask in self.mask_thresholds}
        best = max(share.value for share in shares.values())
        mask = min(
            (mask for mask, share in shares.items() if share.value >= best - _WITHIN),
            key=lambda mask: _distance(mask, self.config.mask_threshold),
        )
        return Recommendation(*setting, mask, f"{self._why_setting(setting)} {self._why_mask(mask, shares)}")

    def _why_setting(self, setting: Setting) -> str:
        kinds = (
            (self.missed_flips(setting), "flipped answers", "similar", "too low"),
            (self.accepted_restatements(setting), "restatements", "different", "too high"),
        )
        judged = [
            f"{_percent(share)} of {share.count} {what} as {verdict} (95% interval {_interval(share)})"
            for share, what, verdict, _ in kinds
            if share.count
        ]
        chosen = f"ε_s = {setting.similarity_threshold:g} with {setting.similarity}"
        basis = (
            f"judges {' and '.join(judged)}; no other is 2 points better." if judged else "is nearest to the config's."
        )
        unknown = [
            f"The sample has no {what}, so it cannot tell whether ε_s is {fault}."
            for share, what, _, fault in kinds
            if not share.count
        ]
        return " ".join([f"{chosen} {basis}", *unknown])

    def _why_mask(self, mask: float, shares: Mapping[float, Estimate]) -> str:
        share, times = shares[mask], "iteration" if self.guided_iterations == 1 else "iterations"
        text = (
            f"With ρ_th = {mask:g}, {_percent(share)} of {share.count} records have an accepted response after "
            f"{self.guided_iterations} {times} (95% interval {_interval(share)}); no other is 2 points better."
        )
        alike = [
            f"{other:g}"
            for other, found in shares.items()
            if other != mask and found.high >= share.low and found.low <= share.high
        ]
        return f"{text} The interval overlaps with that of ρ_th = {', '.join(alike)}." if alike else text

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The share accepted by iteration for each setting, as flat JSON-ready rows."""
        return [
            {"mask_threshold": mask, **setting._asdict(), "iteration": number}
            | {"accepted": share.value, "low": share.low, "high": share.high, "records": share.count}
            for setting in self.settings
            for mask in self.mask_thresholds
            for number, share in enumerate(self.accepted(mask, setting), 1)
        ]

    @property
    def curves(self) -> list[dict[str, Any]]:
        """Quantiles of the similarity of the responses of each iteration, as JSON-ready rows."""
        return [
            {"mask_threshold": mask, "similarity": name, "iteration": number, "responses": len(found)}
            | dict(zip(map(str, QUANTILES), np.quantile(found, QUANTILES).tolist(), strict=True))
            for name in dict.fromkeys(setting.similarity for setting in self.settings)
            for mask in self.mask_thresholds
            for number in range(1, self.iterations + 1)
            if (found := self._similarities(mask, number, name))
        ]

    def _similarities(self, mask: float, iteration: int, name: str) -> list[float]:
        return [
            one.similarities[name]
            for one in self.candidates
            if (one.mask_threshold, one.iteration) == (mask, iteration)
        ]

    @property
    def judged(self) -> list[dict[str, Any]]:
        """What each setting makes of the responses whose meaning is known, as JSON-ready rows."""
        kinds = {"missed_flips": self.missed_flips, "accepted_restatements": self.accepted_restatements}
        return [
            setting._asdict() | {name: _json_share(share(setting)) for name, share in kinds.items()}
            for setting in self.settings
        ]

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The first responses to a few records, those under each ρ_th side by side."""
        return [
            {"record": record, **question._asdict()}
            | {"responses": [asdict(one) for one in self.candidates if one.record == record and one.iteration == 1]}
            for record, question in list(self.questions.items())[:_EXAMPLES]
        ]

    def side_by_side(self) -> str:
        """The examples as text."""
        lines = []
        for one in self.examples:
            lines += ["", f"asked     {one['prompt']}", f"chosen    {one['chosen']}"]
            lines += [f"ρ_th {row['mask_threshold']:<4g} {row['text']}" for row in one["responses"]]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """All of the report, JSON-ready."""
        recommended = self.recommendation._asdict()
        return {
            "rows": self.rows,
            "recommendation": recommended.pop("reason"),
            "recommended": recommended,
            "judged": self.judged,
            "curves": self.curves,
            "examples": self.examples,
            "config": describe(self.config),
        }

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write tune.json, which `mmbdhs report` shows, and tune.png into a folder. Returns their paths.

        Raises ImportError that names the extra without matplotlib.
        """
        picture, data = Path(folder) / "tune.png", Path(folder) / "tune.json"
        draw(self, picture)
        write_whole(data, [json.dumps(self.as_json(), indent=1, ensure_ascii=False).encode() + b"\n"])
        return [data, picture]

    def __str__(self) -> str:
        numbers = [str(number) for number in range(1, self.iterations + 1)]
        interval = f"95% after {self.guided_iterations}"
        header = ["ρ_th", "ε_s", *numbers, interval, "flips missed", "restated accepted", "similarity"]
        lines = [header, *(self._line(mask, one) for one in self.settings for mask in self.mask_thresholds)]
        title = f"Share of {len(self.questions)} records with an accepted response after each iteration:"
        return "\n".join([title, text_table(lines), "", self.recommendation.reason])

    def _line(self, mask: float, setting: Setting) -> list[str]:
        """A row of the table."""
        shares = self.accepted(mask, setting)
        judged = self.missed_flips(setting), self.accepted_restatements(setting)
        best = self.recommendation
        mark = " <- recommended" * (
            (*setting, mask) == (best.similarity, best.similarity_threshold, best.mask_threshold)
        )
        return [
            f"{mask:g}",
            f"{setting.similarity_threshold:g}",
            *map(_percent, shares),
            _interval(shares[self.guided_iterations - 1]),
            *(f"{_percent(share)} of {share.count}" if share.count else "none" for share in judged),
            setting.similarity + mark,
        ]


def is_flipped(reference: str, response: str) -> bool:
    """Whether one text begins with yes and the other with no."""
    return {leading_answer(reference), leading_answer(response)} == {"yes", "no"}


def is_restated(reference: str, response: str) -> bool:
    """Whether a response differs from the reference in nothing but letter case, punctuation, articles, demonstratives,
    "there", "it", "and" and forms of "to be", but does differ."""
    return _content(reference) == _content(response) and reference.split() != response.split()


def _content(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _EMPTY_WORDS]


def _distance(value: float, configured: float) -> float:
    """How far two thresholds are apart, rounded so that 0.98 and 0.96 are equally far from 0.97."""
    return round(abs(value - configured), 9)


def _share(hits: Iterable[bool]) -> Estimate:
    counted = list(map(int, hits))
    return ratio(counted, [1] * len(counted))


def _clustered(candidates: Sequence[Candidate], hits: Sequence[bool]) -> Estimate:
    return ratio(list(map(int, hits)), [1] * len(hits), [one.record for one in candidates])


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%}"


def _interval(share: Estimate) -> str:
    return f"{share.low:.0%} to {share.high:.0%}"


def _json_share(share: Estimate) -> dict[str, Any]:
    """An estimate, whose value is None where nothing was found."""
    return asdict(share) | ({} if share.count else {"value": None})
