"""Runs compared question by question: differences of metrics with 95% intervals from a paired bootstrap over images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmbdhs.data import read_jsonl
from mmbdhs.evaluation.benchmark import Outcome
from mmbdhs.evaluation.intervals import LEVEL, Estimate
from mmbdhs.evaluation.scores import ALL, estimates

OUTCOMES, RESULTS = "outcomes.jsonl", "results.json"  # of a run, in the folder of its benchmark
_AT_ONCE = 2**22  # weights of images that are drawn at a time: bounds memory


@dataclass(frozen=True)
class Difference:
    """A metric of a run against the same metric of another.

    group, metric: their names.
    first, second: the metric of either run, with its own interval.
    difference: second − first, with the interval of the paired bootstrap.
    higher, lower: on how many questions the second run's value is above or below the first one's.
    """

    group: str
    metric: str
    first: Estimate
    second: Estimate
    difference: Estimate
    higher: int
    lower: int


@dataclass(frozen=True)
class StoredRun:
    """A run over a benchmark as it is on disk.

    folder: of the benchmark.
    outcomes: of all questions.
    results: of results.json.
    """

    folder: Path
    outcomes: list[Outcome]
    results: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> StoredRun:
        """Read a folder of `evaluate`. Raises FileNotFoundError for one without results."""
        path = Path(folder)
        if missing := [name for name in (RESULTS, OUTCOMES) if not (path / name).is_file()]:
            raise FileNotFoundError(f"{path}: needs a finished run of mmbdhs evaluate, lacks {', '.join(missing)}")
        outcomes = list(map(Outcome.of_row, read_jsonl(path / OUTCOMES)))
        return cls(path, outcomes, json.loads((path / RESULTS).read_text(encoding="utf-8")))


def find_runs(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The runs in an output folder by benchmark: of the folder itself, or of those in it. Raises FileNotFoundError if
    there is none."""
    path = Path(folder)
    places = [path, *(sorted(path.iterdir()) if path.is_dir() else [])]
    found = {place.name: place for place in places if (place / RESULTS).is_file()}
    if not found:
        raise FileNotFoundError(f"{path}: needs a folder of mmbdhs evaluate with {RESULTS}, found none")
    return found


def compare(
    first: Sequence[Outcome], second: Sequence[Outcome], draws: int = 10_000, seed: int = 0
) -> list[Difference]:
    """Compare two runs over the same questions, metric by metric, the group "all" first.

    first, second: what each answer counts, in any order.
    draws: number of bootstrap samples. Each draws as many images as there are, with replacement, and takes all their
        questions of both runs, so what questions about one image have in common, and what the runs have in common,
        enters the interval (Davison and Hinkley, Bootstrap Methods, 1997, ch. 2). Its ends are the 2.5% and 97.5%
        points of the differences. With fewer than about 30 images it is too narrow.
    seed: of the draws.

    Raises ValueError for runs over other questions.
    """
    if draws < 1:
        raise ValueError(f"draws: needs a number above 0, got {draws}")
    others = {outcome.id: outcome for outcome in second}
    _check_same(first, others)
    pairs = [(one, others[one.id]) for one in sorted(first, key=lambda outcome: outcome.id)]
    values = estimates(first), estimates(second)
    cells = list(product(values[0], values[0][ALL]))
    differences = _bootstrap(_image_sums(pairs, cells), draws, seed)
    found = []
    for (group, metric), drawn in zip(cells, differences.T, strict=True):
        one, other = values[0][group][metric], values[1][group][metric]
        interval = Estimate(other.value - one.value, *_percentiles(drawn), one.count)
        found.append(Difference(group, metric, one, other, interval, *_higher_and_lower(pairs, group, metric)))
    return found


def _check_same(first: Sequence[Outcome], second: Mapping[str, Outcome]) -> None:
    """Raise ValueError unless both runs are about the same questions, images and groups."""
    ids = {outcome.id for outcome in first}
    if other := sorted(ids ^ second.keys()):
        raise ValueError(f"runs: need the same questions, {len(other)} are in one alone: {', '.join(other[:5])}")
    for one in first:
        same = second[one.id]
        if (one.image, set(one.groups), one.counts.keys()) != (same.image, set(same.groups), same.counts.keys()):
            raise ValueError(f"runs: need the same benchmark, question {one.id!r} has another image, group or metric")


def _counts(outcome: Outcome, group: str, metric: str) -> tuple[float, float]:
    """Numerator and denominator in a cell of the table."""
    inside = group == ALL or group in outcome.groups
    return outcome.counts.get(metric, (0.0, 0.0)) if inside else (0.0, 0.0)


def _image_sums(pairs: Sequence[tuple[Outcome, Outcome]], cells: Sequence[tuple[str, str]]) -> np.ndarray:
    """The sums of y and x of either run over the questions of each image: [images, cells, runs, 2]."""
    numbers: dict[str, int] = {}
    index = [numbers.setdefault(one.image, len(numbers)) for one, _ in pairs]
    sums = np.zeros((len(numbers), len(cells), 2, 2))
    for image, pair in zip(index, pairs, strict=True):
        sums[image] += [[_counts(outcome, *cell) for outcome in pair] for cell in cells]
    return sums


def _bootstrap(sums: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Differences of the metrics in every draw, [draws, cells]; NaN where a denominator is 0."""
    rng, images = np.random.default_rng(seed), len(sums)
    most = max(_AT_ONCE // images, 1)
    flat, found = sums.reshape(images, -1), []
    for begin in range(0, draws, most):
        weights = rng.multinomial(images, np.full(images, 1 / images), size=min(most, draws - begin))
        drawn = (weights @ flat).reshape(-1, *sums.shape[1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            values = drawn[..., 0] / drawn[..., 1]
        found.append(values[..., 1] - values[..., 0])
    return np.concatenate(found)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    """The ends of the interval; NaN where no draw has a value."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _higher_and_lower(pairs: Sequence[tuple[Outcome, Outcome]], group: str, metric: str) -> tuple[int, int]:
    """How many questions the second run's value is above, and below, the first one's."""
    counts = [[_counts(outcome, group, metric) for outcome in pair] for pair in pairs]
    change = [y2 / x2 - y1 / x1 for (y1, x1), (y2, x2) in counts if x1 and x2]
    return sum(one > 0 for one in change), sum(one < 0 for one in change)
