"""Does alignment work? Every method on bases trained independently, judged on scenes whose every fact is known.

What a base costs to train counts as its own; everything else is the time of one process with one thread. The table is
the paper's Table 6 in small, followed by the ablation of its Table 15 (one run each) and its Figure 10.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from alignment_methods import ABLATION, METHODS, PAPER, Method, Start
from alignment_world import POPE, base, judge, records
from plot import IntervalRow, Line, interval_plot, line_plot
from table import RESULTS, Options, Table

from mmbdhs import bdhs_sample, miniature
from mmbdhs.evaluation import mean_interval
from mmbdhs.miniature.demo import minilm
from mmbdhs.training import TrainConfig, train

RUNS = ((0, 0), (1, 1), (2, 2), (0, 3), (1, 4))  # base and seed
BASELINE, SFT, BDHS, CONTROL = "baseline", "SFT", "DPO, BDHS", "DPO, BDHS, rho 0"
COLUMNS = (
    {"method": "<22s", "runs": ">4d", "hallucination": ">.3f", "±": ">.3f", "cut": ">.0%", "objects": ">.3f"}
    | {"colours": ">.3f", "recall": ">.3f", "recall ±": ">.3f", "words": ">.1f"}
    | {f"{split} {metric}": ">.3f" for split, metric in POPE}
    | {"minutes": ">.1f"}
)


@dataclass(frozen=True)
class Scale:
    """pairs: images to align with, each visited `epochs` times. judged: images of `world` to judge with. runs:
    base and seed of each."""

    pairs: int = 640
    epochs: int = 2
    judged: int = 250
    world: str = "balanced"
    runs: tuple[tuple[int, int], ...] = RUNS


QUICK = Scale(pairs=200, judged=100, runs=RUNS[:1])


@dataclass(frozen=True)
class Run:
    """One method on one base, or the base as it is."""

    name: str
    base: int
    seed: int
    scale: Scale

    def scores(self) -> dict[str, Any]:
        """Align and judge: the scores, and the CPU minutes that aligning took."""
        model, processor = miniature.load(base(self.base))
        begin = time.process_time()
        if self.name != BASELINE:
            self._align((METHODS | ABLATION)[self.name], Start(model, processor, self.seed))
        minutes = (time.process_time() - begin) / 60
        return judge(model, processor, self.scale.judged, self.scale.world, self.seed) | {"minutes": minutes}

    def _align(self, method: Method, start: Start) -> None:
        examples = records(self.scale.pairs, self.seed)
        if method.rejected is not None:
            rejected = method.rejected(start, examples)
            examples = [example | {"rejected": text} for example, text in zip(examples, rejected, strict=True)]
        with tempfile.TemporaryDirectory() as output:
            train(start.model, start.processor, examples, method.source(start), method.objective, self._config(output))

    def _config(self, output: str) -> TrainConfig:
        """The same for all methods, settled on the validation world."""
        return TrainConfig(
            output,
            num_train_epochs=self.scale.epochs,
            lora_r=0,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            learning_rate=3e-4,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            logging_steps=1000,
            seed=self.seed,
            on_error="skip",
        )


def main(options: Options) -> None:
    """All of it; `--quick` aligns the shipped base once, by four methods, and fails where BDHS does not help."""
    with _processes() as pool, Table("alignment", COLUMNS, options) as table:
        if options.quick:
            found = _compare(pool, table, (SFT, CONTROL, BDHS), QUICK)
            _require_help(found)
            return
        list(pool.map(base, {number for number, _ in RUNS}))
        found = _compare(pool, table, METHODS, Scale())
        _compare(pool, table, ABLATION, Scale(pairs=320, runs=RUNS[:1]))
        _plot_methods(found)
        _dissimilar(pool, table, images=100)


def _processes() -> ProcessPoolExecutor:
    """One process with one thread for each core; small models gain nothing from more."""
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would write over each other
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), _settle)


def _settle() -> None:
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    logging.getLogger("mmbdhs").setLevel(logging.ERROR)


def _compare(
    pool: ProcessPoolExecutor, table: Table, methods: Iterable[str], scale: Scale
) -> dict[str, list[dict[str, Any]]]:
    """A row for the baseline and for each method; returns the scores of its runs."""
    names = (BASELINE, *methods)
    results = pool.map(Run.scores, [Run(name, *run, scale) for name in names for run in scale.runs])
    found = {}
    for name in names:
        found[name] = [next(results) for _ in scale.runs]
        table.add(method=name, runs=len(scale.runs), **_summary(found[name], found[BASELINE]))
    return found


def _summary(scores: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, float]:
    """Means over runs, with half a 95% interval where it matters; cut: of the baseline's hallucination, run by run."""
    means = {name: fmean(one[name] for one in scores) for name in scores[0]}
    pairs = zip(scores, baseline, strict=True)
    cut = fmean(1 - one["hallucination"] / before["hallucination"] for one, before in pairs)
    return means | {"±": _half(scores, "hallucination"), "recall ±": _half(scores, "recall"), "cut": cut}


def _half(scores: list[dict[str, Any]], name: str) -> float | None:
    """Half the width of the interval of a mean over runs; one run has none."""
    found = mean_interval([one[name] for one in scores])
    return found.high - found.value if len(scores) > 1 else None


def _require_help(found: dict[str, list[dict[str, Any]]]) -> None:
    rate = {name: scores[0]["hallucination"] for name, scores in found.items()}
    rivals = (BASELINE, SFT, CONTROL)
    if not all(rate[BDHS] < 0.9 * rate[name] for name in rivals):
        raise SystemExit(f"alignment: BDHS must hallucinate a tenth less than {', '.join(rivals)}, got {rate}")


def _plot_methods(found: dict[str, list[dict[str, Any]]]) -> None:
    rows = []
    for name, scores in found.items():
        rate = mean_interval([one["hallucination"] for one in scores])
        rows.append(IntervalRow(name, rate.value, max(rate.low, 0.0), min(rate.high, 1.0), bold=name == BDHS))
    title = "Wrong objects and colours per object mention, mean of runs and 95% interval"
    interval_plot(RESULTS / "alignment-methods.png", title, rows, reference=rows[0].value)


def _dissimilar(pool: ProcessPoolExecutor, table: Table, images: int) -> None:
    """Figure 10: share of rejected captions that differ from their reference after so many iterations."""
    settings = {f"rho_th {share:g}": {"mask_threshold": share} for share in (0.99, 0.0, 0.9, 0.98, 1.0)}
    settings |= {f"noise {steps}": {"noise_steps": steps} for steps in (100, 300, 500)}
    shares = pool.map(_shares, settings.values(), [images] * len(settings))
    lines = []
    for name, found in zip(settings, shares, strict=True):
        table.add(method=f"differ, {name}", runs=1, iterations=found)
        lines.append(Line(name, list(enumerate(found, 1))))
    title = "Rejected captions that differ in meaning from their reference, by iteration"
    line_plot(RESULTS / "alignment-iterations.png", title, lines, shares=True)


def _shares(settings: dict[str, Any], images: int) -> list[float]:
    """The shares of samples accepted by iterations 1 … 4, judged by MiniLM; the fifth is unguided."""
    examples = records(images, seed=0)
    columns = [[record[name] for record in examples] for name in ("images", "prompt", "chosen")]
    samples = bdhs_sample(*miniature.load(base(0)), *columns, replace(PAPER, **settings), minilm())
    return [sum(sample.iterations <= most for sample in samples) / images for most in range(1, PAPER.max_iterations)]
