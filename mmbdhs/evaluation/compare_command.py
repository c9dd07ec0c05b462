"""`mmbdhs compare`: the table and the picture of several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbdhs.evaluation.compare import Difference, StoredRun, compare, find_runs
from mmbdhs.evaluation.results import text_table

DESCRIPTION = """Compare runs of mmbdhs evaluate with the first of them, question by question: differences with 95%
intervals of a paired bootstrap over images, and on how many questions a run is above or below the first."""
_STATED = ("facts", "questions", "decoding")  # what makes results differ besides the model


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 2 for wrong arguments and for runs that cannot be compared."""
    parser = argparse.ArgumentParser(prog="mmbdhs compare", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output folders of mmbdhs evaluate")
    parser.add_argument("--groups", action="store_true", help="show every group of questions, such as POPE's splits")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of the metrics with their intervals")
    parser.add_argument("--draws", type=int, default=10_000, metavar="N", help="number of bootstrap samples")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap")
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.runs) < 2:
            raise ValueError(f"runs: needs two folders or more, got {len(arguments.runs)}")
        found = read_runs(arguments.runs)
        for benchmark, runs in found.items():
            print(table(benchmark, runs, arguments.groups, arguments.draws, arguments.seed))
        if arguments.plot:
            from mmbdhs.evaluation.compare_plot import draw

            draw(found, arguments.plot)
            print(arguments.plot)
    except (OSError, ValueError, ImportError) as error:
        print(f"mmbdhs compare: {error}", file=sys.stderr)
        return 2
    return 0


def read_runs(folders: Sequence[str]) -> dict[str, dict[str, StoredRun]]:
    """The runs of every benchmark that all folders have, by folder. Raises ValueError if there is none."""
    found = {folder: find_runs(folder) for folder in folders}
    if len(found) < len(folders):
        raise ValueError(f"runs: needs every folder once, got {', '.join(folders)}")
    first, *others = found.values()
    common = [name for name in first if all(name in other for other in others)]
    if not common:
        each = "; ".join(f"{folder} has {', '.join(runs)}" for folder, runs in found.items())
        raise ValueError(f"runs: need a benchmark in common, {each}")
    return {name: {folder: StoredRun.read(runs[name]) for folder, runs in found.items()} for name in common}


def table(benchmark: str, runs: Mapping[str, StoredRun], groups: bool, draws: int, seed: int) -> str:
    """The differences of all runs from the first as text, and what else differs between them."""
    first, *others = runs
    lines = []
    for other in others:
        found = compare(runs[first].outcomes, runs[other].outcomes, draws, seed)
        rows = [_row(one) for one in found if groups or one.group == found[0].group]
        lines += ["", f"{benchmark}: {first} → {other}", text_table([list(_HEADER), *rows])]
        if differing := _differing(runs[first].results, runs[other].results):
            lines.append(f"the runs differ in {differing}")
    return "\n".join(lines)


_HEADER = ("group", "metric", "first", "second", "difference [95%]", "higher", "lower")


def _row(one: Difference) -> list[str]:
    change = one.difference
    interval = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
    return [
        *(one.group, one.metric, f"{one.first.value:.3f}", f"{one.second.value:.3f}"),
        *(interval, str(one.higher), str(one.lower)),
    ]


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What two runs state that must be alike for their metrics to compare."""
    from mmbdhs.runs import differences

    def stated(results: Mapping[str, Any]) -> dict[str, Any]:
        judge = results["judge"] and results["judge"]["name"]  # when and about which answers it was asked may differ
        return {name: results[name] for name in _STATED} | {"judge": judge}

    return "; ".join(differences(stated(first), stated(second)))
