"""Reward models, and reinforcement learning from rewards: tables 7 and 8 of the paper in small, on the shipped base.

A reward model learns from pairs of one kind and is tried on held-out pairs of each kind. RLOO and PPO learn from a
reward that knows the scene, and RLOO from reward models.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from alignment_page import difference_table, fill_pages, level_table, shown_difference, text_table
from alignment_runs import processes
from alignment_tables import rates
from alignment_world import BASES
from reward_data import KINDS_OF_PAIRS
from reward_runs import ORACLE, Method, Study, recipe
from table import Options, Table

from mmbdhs.evaluation import Outcome, compare
from mmbdhs.training import ppo, rloo

SEEDS = (0, 1, 2)
SETTINGS = {"beta": 0.05, "max_kl": 1e4}  # a policy that collapses is a result here
RLOO, PPO = rloo(**SETTINGS), ppo(num_ppo_epochs=2, lam=1.0, **SETTINGS)
BASELINE, TRAINED_ON = "baseline", "trained on"
METHODS = {
    BASELINE: Method(ORACLE, None),
    "RLOO, oracle": Method(ORACLE, RLOO, steps=60),
    "PPO, oracle": Method(ORACLE, PPO, rate=3e-4, steps=40),
    "RLOO, model of rankings": Method("rankings", RLOO, steps=60),
    "RLOO, model of corruptions": Method("corruptions", RLOO, steps=60),
    "RLOO, model of corruptions†": Method("corruptions†", RLOO, steps=60),
}
QUICK_METHODS = (BASELINE, "PPO, oracle", "RLOO, model of rankings")
Job = tuple[Any, ...]  # a function of a seed, and its first arguments
METRICS = ("sampled wrong", "sampled recall", "sampled length", "greedy wrong", "adversarial accuracy")
SHOWN = {"sampled wrong": "wrong", "sampled recall": "Recall", "adversarial accuracy": "adversarial"}


def main(options: Options) -> None:
    """All of it; `--quick` only shows that it runs."""
    with tempfile.TemporaryDirectory() as folder, processes() as pool:
        if options.quick:
            study, seeds = Study(Path(folder), 16, 8, 16, judged=4, reward_steps=1, shorter=40), SEEDS[:1]
            kinds, methods = KINDS_OF_PAIRS[-1:], QUICK_METHODS
        else:
            study, seeds = Study(BASES / f"rewards-{recipe()}", judged=200), SEEDS
            kinds, methods = KINDS_OF_PAIRS, tuple(METHODS)
        jobs: dict[str, Job] = {kind: (study.accuracies, kind) for kind in kinds}
        jobs |= {name: (study.outcomes, name, METHODS[name]) for name in methods}
        pool.map(study.pairs, seeds)  # begin first, and are there when models need them
        found = _submitted(pool, jobs, seeds)
        rows = add_accuracies(found(kinds), options), add_policies(found(methods), options)
    if not options.quick:
        fill_pages(page_tables(*rows))


def _submitted(
    pool: ProcessPoolExecutor, jobs: Mapping[str, Job], seeds: Sequence[int]
) -> Callable[[Sequence[str]], Iterator[tuple[str, list[Any]]]]:
    """Start the jobs of every seed, one seed after the other. Returns a function that waits for those of some names."""
    futures = {(name, seed): pool.submit(*jobs[name], seed) for seed in seeds for name in jobs}
    for job, future in futures.items():
        future.add_done_callback(lambda _, job=job: print("ended: {} {}\n".format(*job), end="", flush=True))
    return lambda names: ((name, [futures[name, seed].result() for seed in seeds]) for name in names)


def add_accuracies(found: Iterator[tuple[str, list[dict[str, float]]]], options: Options) -> list[dict[str, Any]]:
    """A row for each kind of pairs that reward models learned from: their accuracies in percent, as means over seeds
    with the standard deviation."""
    with Table("reward_models", {TRAINED_ON: "<14s"} | dict.fromkeys(KINDS_OF_PAIRS, "<12s"), options) as table:
        for name, runs in found:
            of_seeds = {kind: [round(100 * run[kind], 1) for run in runs] for kind in KINDS_OF_PAIRS}
            shown = {kind: _with_spread(values) for kind, values in of_seeds.items()}
            table.add(**{TRAINED_ON: name}, **shown, of_seeds=of_seeds)
    return table.rows


def _with_spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of several values."""
    return f"{fmean(values):.0f}" + (f" ± {stdev(values):.0f}" if len(values) > 1 else "")


def add_policies(
    found: Iterator[tuple[str, list[tuple[list[Outcome], float]]]], options: Options
) -> list[dict[str, Any]]:
    """A row for each method, the baseline first: levels over all seeds, and what they differ from the baseline by."""
    columns = {"method": "<28s"} | dict.fromkeys(METRICS, ">.3f") | {"minutes": ">.1f"}
    columns |= dict.fromkeys(SHOWN.values(), "<28s")
    baseline: list[list[Outcome]] = []
    with Table("rewards", columns, options) as table:
        for method, runs in found:
            outcomes = [one for one, _ in runs]
            baseline = baseline or outcomes
            cells = _differences(baseline, outcomes)
            shown = {name: cells[metric] and shown_difference(cells[metric]) for metric, name in SHOWN.items()}
            minutes = fmean(minutes for _, minutes in runs)
            level = {
                metric: cells[metric] and value
                for metric, value in rates(_joined(outcomes)).items()
                if metric in METRICS
            }
            table.add(method=method, seeds=len(runs), **level, **shown, minutes=minutes, differences=cells)
    return table.rows


def page_tables(models: Sequence[Mapping[str, Any]], policies: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The tables of the page by their names, made of the rows of reward models and of policies."""
    levels = [{**row, **{name: nan if row[name] is None else row[name] for name in METRICS}} for row in policies]
    differences = [
        {"method": row["method"], **{name: cell or ([nan] * 3, [0.0]) for name, cell in row["differences"].items()}}
        for row in policies
        if row["method"] != BASELINE
    ]
    return {
        "reward models": text_table(models, [TRAINED_ON, *KINDS_OF_PAIRS]),
        "rewards": _with_dashes(level_table(levels, METRICS)),
        "rewards differences": _with_dashes(difference_table(differences, METRICS, "method")),
    }


def _with_dashes(table: str) -> str:
    """The table with a dash for each number that does not exist."""
    return re.sub(r"\+nan \[.*?\]|\bnan\b", "–", table)


def _differences(before: Sequence[list[Outcome]], after: Sequence[list[Outcome]]) -> dict[str, Any]:
    """For each metric the difference over all seeds with its 95% interval (bootstrap over images, which are the same
    for all runs), and the difference of each seed; None where the captions of a seed name no object, of which none can
    be wrong.
    """
    each = [(rates(one), rates(other)) for one, other in zip(before, after, strict=True)]
    found: dict[str, Any] = {}
    for one in compare(_joined(before), _joined(after)):
        if one.metric in METRICS:
            interval = [round(x, 4) for x in (one.difference.value, one.difference.low, one.difference.high)]
            of_seeds = [round(new[one.metric] - old[one.metric], 4) for old, new in each]
            exists = all(sum(outcome.counts[one.metric][1] for outcome in some) for some in after)
            found[one.metric] = (interval, of_seeds) if exists else None
    return found


def _joined(outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of all seeds, whose images are the same."""
    return [replace(one, id=f"{seed}/{one.id}") for seed, some in enumerate(outcomes) for one in some]
