"""Reward models, and reinforcement learning from rewards: tables 7 and 8 of the paper in small, on the shipped base.

A reward model learns from pairs of one kind and is tried on held-out pairs of each kind. RLOO and PPO learn from a
reward that knows the scene, and RLOO from reward models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from alignment_page import difference_table, fill_pages, level_table, markdown, shown_difference
from alignment_runs import BASELINE, processes
from alignment_tables import differences, joined, rates
from alignment_world import BASES
from reward_data import KINDS_OF_PAIRS
from reward_runs import ORACLE, Method, Study, reward_recipe
from table import Options, Table

from mmbdhs.evaluation import Outcome
from mmbdhs.training import ppo, rloo

SEEDS = (0, 1, 2)
SETTINGS = {"beta": 0.05, "max_kl": 1e4}  # a policy that collapses is a result here
RLOO, PPO = rloo(**SETTINGS), ppo(num_ppo_epochs=2, lam=1.0, **SETTINGS)
TRAINED_ON = "trained on"
METHODS = {
    BASELINE: Method(ORACLE, None),
    "RLOO, oracle": Method(ORACLE, RLOO),
    "PPO, oracle": Method(ORACLE, PPO, rate=3e-4, steps=40),
    "RLOO, model of rankings": Method("rankings", RLOO),
    "RLOO, model of corruptions": Method("corruptions", RLOO),
    "RLOO, model of corruptions†": Method("corruptions†", RLOO),
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
            study, seeds = Study(BASES / f"rewards-{reward_recipe()}"), SEEDS
            kinds, methods = KINDS_OF_PAIRS, tuple(METHODS)
        jobs: dict[str, Job] = {kind: (study.accuracies, kind) for kind in kinds}
        jobs |= {name: (study.outcomes, name, METHODS[name]) for name in methods}
        pool.map(study.pair_rows, seeds)  # begin first, and are there when models need them
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
            known = {metric for metric in METRICS if _exists(metric, outcomes)}
            cells, level = (
                {metric: values[metric] if metric in known else None for metric in METRICS}
                for values in (differences(baseline, outcomes), rates(joined(outcomes)))
            )
            shown = {name: cells[metric] and shown_difference(cells[metric]) for metric, name in SHOWN.items()}
            minutes = fmean(minutes for _, minutes in runs)
            table.add(method=method, seeds=len(runs), **level, **shown, minutes=minutes, differences=cells)
    return table.rows


def page_tables(models: Sequence[Mapping[str, Any]], policies: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The tables of the page by their names, made of the rows of reward models and of policies."""
    shares = [[row[name] for name in (TRAINED_ON, *KINDS_OF_PAIRS)] for row in models]
    changes = [{"method": row["method"], **row["differences"]} for row in policies if row["method"] != BASELINE]
    return {
        "reward models": markdown(["", *KINDS_OF_PAIRS], shares),
        "rewards": level_table(policies, METRICS),
        "rewards differences": difference_table(changes, METRICS, "method"),
    }


def _exists(metric: str, outcomes: Sequence[Sequence[Outcome]]) -> bool:
    """Whether a metric has a value for every seed: where the captions of one name no object, none can be wrong."""
    return all(sum(one.counts[metric][1] for one in of_seed) for of_seed in outcomes)
