"""What the rows of runs say: levels of each method, and paired differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from alignment_runs import Run, unpacked

from mmbdhs.evaluation import Outcome, compare
from mmbdhs.evaluation.pope import SPLITS

POPE = ("accuracy", "precision", "recall", "f1", "yes_ratio")
CAPTIONS = ("wrong", "chair_i", "colours", "chair_s", "recall", "length")
METRICS = (
    *(f"{drawn} {metric}" for drawn in ("sampled", "greedy") for metric in CAPTIONS),
    "colours accuracy",
    *(f"{split} {metric}" for split in SPLITS for metric in POPE),
)
Rows = Mapping[Run, dict[str, Any]]
Cell = tuple[Sequence[float], Sequence[float]]


def of_bases(rows: Rows, like: Run) -> list[dict[str, Any]]:
    """The rows of runs that are like this one, by base."""
    return [rows[run] for run in sorted(rows, key=lambda run: run.base) if replace(run, base=like.base) == like]


def rates(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The metrics over all images."""
    sums = {name: [sum(part) for part in zip(*(one.counts[name] for one in outcomes), strict=True)] for name in METRICS}
    return {name: y / x if x else 0.0 for name, (y, x) in sums.items()}


def levels(rows: Rows, like: Run) -> dict[str, Any]:
    """The metrics of runs that are like this one, each base's and their mean."""
    found = of_bases(rows, like)
    by_base = [rates(unpacked(row)) for row in found]
    means = {name: fmean(one[name] for one in by_base) for name in METRICS}
    minutes = fmean(sum(row["cpu_minutes"]) for row in found)
    of_each = {name: [round(one[name], 4) for one in by_base] for name in METRICS}
    numbers = [row["run"]["base"] for row in found]
    return {**_about(like), "bases": len(found), **means, "minutes": minutes, "numbers": numbers, "of_bases": of_each}


def difference(rows: Rows, like: Run, rival: Run) -> dict[str, Any]:
    """How far runs that are like `like` are above those that are like `rival`: for each metric the difference over all
    bases, the ends of its 95% interval (bootstrap over images, the same for all runs), and the difference on each base.
    """
    ours, theirs = of_bases(rows, like), of_bases(rows, rival)
    bases = {row["run"]["base"] for row in ours} & {row["run"]["base"] for row in theirs}
    images = min(like.judged, rival.judged)
    before, after = ([unpacked(row, images) for row in side if row["run"]["base"] in bases] for side in (theirs, ours))
    return {**_about(like), "minus": rival.method, "bases": len(bases), **differences(before, after)}


def differences(before: Sequence[Sequence[Outcome]], after: Sequence[Sequence[Outcome]]) -> dict[str, Cell]:
    """How far runs are above as many others: for each metric the difference over all runs and the ends of its 95%
    interval (bootstrap over images, which are the same for all runs), and the difference of each run."""
    each = [(rates(one), rates(other)) for one, other in zip(before, after, strict=True)]
    found = {}
    for one in compare(joined(before), joined(after)):
        interval = one.difference.value, one.difference.low, one.difference.high
        of_runs = [new[one.metric] - old[one.metric] for old, new in each]
        found[one.metric] = [round(x, 4) for x in interval], [round(x, 4) for x in of_runs]
    return found


def joined(runs: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of all runs, which are about the same images, with the metrics that are reported."""
    return [
        replace(one, id=f"{number}/{one.image}", counts={name: one.counts[name] for name in METRICS})
        for number, outcomes in enumerate(runs)
        for one in outcomes
    ]


def _about(run: Run) -> dict[str, Any]:
    return {"method": run.method, "bias": run.bias, "images": run.images}
