"""Reward models, and reinforcement learning from rewards: tables 7 and 8 of the paper in small, on the shipped base.

A reward model learns from pairs of one kind and is tried on held-out pairs of each kind. RLOO and PPO learn from a
reward that knows the scene, and RLOO from reward models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
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
BASELINE = "baseline"
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
        tables = add_accuracies(found(kinds), options) | add_policies(found(methods), options)
    if not options.quick:
        fill_pages(tables)


def _submitted(
    pool: ProcessPoolExecutor, jobs: Mapping[str, Job], seeds: Sequence[int]
) -> Callable[[Sequence[str]], Iterator[tuple[str, list[Any]]]]:
    """Start the jobs of every seed, one seed after the other. Returns a function that waits for those of some names."""
    futures = {(name, seed): pool.submit(*jobs[name], seed) for seed in seeds for name in jobs}
    for job, future in futures.items():
        future.add_done_callback(lambda _, job=job: print("ended:", *job, flush=True))
    return lambda names: ((name, [futures[name, seed].result() for seed in seeds]) for name in names)


def add_accuracies(found: Iterator[tuple[str, list[dict[str, float]]]], options: Options) -> dict[str, str]:
    """A row for each kind of pairs that reward models learned from: their accuracies in percent, as means over seeds
    with the standard deviation. Returns the table of the page."""
    columns = {"trained on": "<14s"} | dict.fromkeys(KINDS_OF_PAIRS, "<12s")
    with Table("reward_models", columns, options) as table:
        for name, runs in found:
            of_seeds = {kind: [round(100 * run[kind], 1) for run in runs] for kind in KINDS_OF_PAIRS}
            shown = {kind: _with_spread(values) for kind, values in of_seeds.items()}
            table.add(**{"trained on": name}, **shown, of_seeds=of_seeds)
    return {"reward models": text_table(table.rows, list(columns))}


def _with_spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of several values."""
    return f"{fmean(values):.0f}" + (f" ± {stdev(values):.0f}" if len(values) > 1 else "")


def add_policies(found: Iterator[tuple[str, list[tuple[list[Outcome], float]]]], options: Options) -> dict[str, str]:
    """A row for each method: levels over all seeds, and what they differ from the baseline by. Returns the tables of
    the page."""
    columns = {"method": "<28s"} | dict.fromkeys(METRICS, ">.3f") | {"minutes": ">.1f"}
    columns |= dict.fromkeys(SHOWN.values(), "<28s")
    differences: list[dict[str, Any]] = []
    baseline: list[list[Outcome]] = []
    with Table("rewards", columns, options) as table:
        for method, runs in found:
            outcomes = [one for one, _ in runs]
            baseline = baseline or outcomes
            cells = _differences(baseline, outcomes)
            level = rates(_joined(outcomes))
            shown = {name: shown_difference(cells[metric]) for metric, name in SHOWN.items()}
            minutes = fmean(minutes for _, minutes in runs)
            table.add(method=method, **level, **shown, minutes=minutes, seeds=len(runs))
            differences.append({"method": method, **cells})
    return {
        "rewards": level_table(table.rows, METRICS),
        "rewards differences": difference_table(differences[1:], METRICS, "method"),
    }


def _differences(before: Sequence[list[Outcome]], after: Sequence[list[Outcome]]) -> dict[str, Any]:
    """For each metric the difference over all seeds with its 95% interval (bootstrap over images, which are the same
    for all runs), and the difference of each seed."""
    each = [(rates(one), rates(other)) for one, other in zip(before, after, strict=True)]
    return {
        one.metric: (
            [one.difference.value, one.difference.low, one.difference.high],
            [new[one.metric] - old[one.metric] for old, new in each],
        )
        for one in compare(_joined(before), _joined(after))
        if one.metric in METRICS
    }


def _joined(outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of all seeds, whose images are the same."""
    return [replace(one, id=f"{seed}/{one.id}") for seed, some in enumerate(outcomes) for one in some]
