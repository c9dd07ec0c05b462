"""Does alignment work? Every method on bases trained independently, judged on scenes whose every fact is known.

The runs are those of the paper's tables 6 and 15 in small, with controls that could refute them; then come the bias of
the references and the number of images. A run that has ended is kept, so a benchmark that was killed goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from alignment_iterations import plot_iterations
from alignment_methods import BDHS, CONTROL, MAIN, MORE, SFT
from alignment_page import SHOWN, fill_pages, page_tables, plot_page, shown_difference
from alignment_runs import BASELINE, Run, RunFile, processes
from alignment_tables import difference, levels
from alignment_world import BASES, base, recipe
from table import RESULTS, Options, Table

BASE_NUMBERS = (0, 1, 2, 3, 4)
TRUE = 0.0  # bias of the references
COLUMNS = {"method": "<34s", "bias": ">.1f", "images": ">d", "bases": ">d"}


def plan() -> list[Run]:
    """All runs, those first without which the others say little."""
    biased = [Run(method, number) for number in BASE_NUMBERS for method in (BASELINE, *MAIN)]
    true = [Run(method, number, TRUE) for number in BASE_NUMBERS[:2] for method in MAIN]
    return [*biased, *true, *bias_runs(), *number_runs(), *(Run(method, 0, judged=200) for method in MORE)]


def bias_runs() -> list[Run]:
    return [Run(method, 0, bias) for bias in (0.5, 2.0) for method in (SFT, CONTROL, BDHS)]


def number_runs() -> list[Run]:
    return [Run(BDHS, 0, images=images) for images in (32, 64, 128, 512)]


def quick_plan() -> list[Run]:
    """BDHS and its control on the shipped base, with the scenes by which the recipe was settled."""
    return [Run(method, 0, images=112, judged=48, world="validation") for method in (BDHS, CONTROL, BASELINE)]


def main(options: Options) -> None:
    """All of it; `--quick` aligns the shipped base by two methods, and fails where BDHS does not help."""
    runs = quick_plan() if options.quick else plan()
    with tempfile.TemporaryDirectory() as folder, processes() as pool:
        kept = RunFile(Path(folder) / "runs.jsonl" if options.quick else BASES / f"runs-{_recipe()}.jsonl")
        _make(runs, kept, pool)
        if options.quick:
            require_help(add_levels(runs, kept.rows, options))
            return
        report(runs, kept, options)
        plot_iterations(pool, options)


def report(runs: Sequence[Run], kept: RunFile, options: Options) -> None:
    """Tables, plots and rows of runs that have ended."""
    rows = {run: kept.rows[run] for run in runs}
    found = add_levels([run for run in runs if run.base == 0], rows, options)
    fill_pages(page_tables(found, add_differences(rows, options)))
    plot_page(found)
    kept.write(RESULTS / "alignment_runs.jsonl", runs)


def _recipe() -> str:
    """Changes with the benchmark's code that determines what a run counts. Methods differ by their names alone."""
    return recipe("alignment_world", "alignment_rejected", "alignment_judge", "alignment_runs")


def _make(runs: Sequence[Run], kept: RunFile, pool: ProcessPoolExecutor) -> None:
    """Make the runs that are not there yet."""
    missing = [run for run in runs if run not in kept.rows]
    list(pool.map(base, sorted({run.base for run in missing})))
    for number, done in enumerate(as_completed([pool.submit(run.row) for run in missing]), 1):
        kept.add(row := done.result())
        print(f"{number} of {len(missing)}: {row['run']}, {sum(row['cpu_minutes']):.1f} CPU minutes", flush=True)


def add_levels(runs: Iterable[Run], rows: Mapping[Run, dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    """The metrics of each method, as means over bases."""
    with Table("alignment", COLUMNS | dict.fromkeys(SHOWN, ">.3f") | {"minutes": ">.1f"}, options) as table:
        for run in runs:
            table.add(**levels(rows, run))
    return table.rows


def add_differences(rows: Mapping[Run, dict[str, Any]], options: Options) -> list[dict[str, Any]]:
    """BDHS against each rival, with biased and with true references, and every other method against BDHS and the
    baseline."""
    ours, true, baseline = Run(BDHS, 0), Run(BDHS, 0, TRUE), Run(BASELINE, 0)
    rivals = [method for method in MAIN if method != BDHS]
    pairs = [(ours, baseline), *((ours, Run(method, 0)) for method in rivals)]
    pairs += [(true, baseline), *((true, Run(method, 0, TRUE)) for method in rivals)]
    pairs += [(Run(method, 0, judged=200), rival) for method in MORE for rival in (ours, baseline)]
    columns = COLUMNS | {"minus": "<34s"} | dict.fromkeys(SHOWN.values(), ">28s")
    with Table("alignment_differences", columns, options) as table:
        for one, other in pairs:
            found = difference(rows, one, other)
            table.add(**found, **{name: shown_difference(found[metric]) for metric, name in SHOWN.items()})
    return table.rows


def require_help(found: Sequence[Mapping[str, Any]]) -> None:
    """Raise SystemExit unless greedy captions have a fifth fewer wrong claims after BDHS than after all others."""
    rate = {row["method"]: row["greedy wrong"] for row in found}
    if not all(rate[BDHS] < 0.8 * wrong for method, wrong in rate.items() if method != BDHS):
        raise SystemExit(f"alignment: BDHS must make a fifth fewer wrong claims than all others, got {rate}")
