"""The tables and plots of docs/alignment.md, made of the rows of levels and of differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignment_methods import BDHS, CONTROL, FLIPPED, MAIN, MORE, SFT
from alignment_runs import BASELINE, IMAGES
from alignment_tables import Cell
from plot import IntervalRow, Line, interval_plot, line_plot
from table import RESULTS

from mmbdhs.evaluation import mean_interval

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "alignment.md", ROOT / "README.md")
SHOWN = {
    "sampled wrong": "wrong per mention",
    "sampled chair_i": "objects",
    "sampled colours": "colours",
    "sampled chair_s": "CHAIRs",
    "sampled recall": "Recall",
    "sampled length": "words",
    "greedy wrong": "wrong, greedy",
    "greedy recall": "Recall, greedy",
    "random accuracy": "POPE random",
    "popular accuracy": "popular",
    "adversarial accuracy": "adversarial",
    "adversarial precision": "adv. precision",
    "adversarial recall": "adv. recall",
    "adversarial f1": "adv. F1",
    "adversarial yes_ratio": "adv. yes",
    "colours accuracy": "colour answers",
}
CAPTIONS = tuple(name for name in SHOWN if name.startswith(("sampled", "greedy")))
ANSWERS = tuple(name for name in SHOWN if name not in CAPTIONS)
HEADLINE = ("sampled wrong", "sampled chair_i", "sampled colours", "sampled recall", "adversarial accuracy")
SUMMARY = {"sampled wrong": "wrong claims", "sampled recall": "Recall", "adversarial accuracy": "POPE adversarial"}
PER_BASE = {name: SHOWN[name] for name in SUMMARY} | {
    "random recall": "random recall",
    "random yes_ratio": "random yes",
}
Row = Mapping[str, Any]
TITLES = {"bias": "bias of the references", "images": "number of images"}


def page_tables(levels: Sequence[Row], differences: Sequence[Row]) -> dict[str, str]:
    """The tables of the pages by their names."""
    biased, true = main_rows(levels, 1.0), main_rows(levels, 0.0)
    found = {"summary": _summary(biased, true)}
    for name, rows in (("biased", biased), ("true", true)):
        of_differences = [row for row in differences if row["method"] == BDHS and row["bias"] == rows[-1]["bias"]]
        for part, metrics in (("captions", CAPTIONS), ("answers", ANSWERS)):
            found[f"{name} {part}"] = level_table(rows, metrics)
            found[f"{name} {part} differences"] = difference_table(of_differences, metrics, "minus")
    for rival in (BASELINE, BDHS):
        rows = [row for row in differences if row["method"] in MORE and row["minus"] == rival]
        found[f"more minus {rival}"] = difference_table(rows, HEADLINE, "method")
    found["bases"] = _bases_table([row for row in biased if row["method"] in (BASELINE, SFT, CONTROL, BDHS)])
    found["bias"] = _curve_table(bias_curves(levels), "bias")
    found["images"] = _curve_table(image_curve(levels), "images")
    return found


def main_rows(levels: Sequence[Row], bias: float) -> list[Row]:
    """The levels of the main methods for references with this bias, and of the baseline on the same bases."""
    rows = [row for row in levels if row["method"] in MAIN and (row["bias"], row["images"]) == (bias, IMAGES)]
    baseline = next(row for row in levels if row["method"] == BASELINE)
    return [_on_bases(baseline, rows[0]["numbers"]), *rows]


def _on_bases(row: Row, numbers: Sequence[int]) -> Row:
    """The levels on these bases alone."""
    places = [row["numbers"].index(number) for number in numbers]
    of_bases = {name: [values[place] for place in places] for name, values in row["of_bases"].items()}
    means = {name: fmean(values) for name, values in of_bases.items()}
    return {**row, **means, "bases": len(numbers), "numbers": numbers, "of_bases": of_bases}


def _summary(*sides: Sequence[Row]) -> str:
    """The headline, for biased and for true references side by side."""
    body = [
        [pair[0]["method"], *(_plain(row[metric]) for metric in SUMMARY for row in pair)]
        for pair in zip(*sides, strict=True)
        if pair[0]["method"] != FLIPPED  # without captions it is no rival
    ]
    return markdown(["", *(f"{name}, {of}" for name in SUMMARY.values() for of in ("biased", "true"))], body)


def _bases_table(rows: Sequence[Row]) -> str:
    """The levels on each base."""
    body = [
        [str(number), row["method"], *(_plain(row["of_bases"][name][place]) for name in PER_BASE)]
        for place, number in enumerate(rows[0]["numbers"])
        for row in rows
    ]
    return markdown(["base", "", *PER_BASE.values()], body)


def bias_curves(levels: Sequence[Row]) -> dict[str, dict[float, Row]]:
    """The levels of SFT, the control and BDHS by the bias of the references."""
    return {
        name: {row["bias"]: row for row in levels if row["method"] == name and row["images"] == IMAGES}
        for name in (BDHS, CONTROL, SFT)
    }


def image_curve(levels: Sequence[Row]) -> dict[str, dict[float, Row]]:
    """The levels of BDHS by the number of images."""
    return {BDHS: {row["images"]: row for row in levels if row["method"] == BDHS and row["bias"] == 1}}


def _curve_table(curves: Mapping[str, Mapping[float, Row]], of: str) -> str:
    """Wrong claims, Recall and POPE adversarial on the shipped base."""
    points = sorted(set.intersection(*(set(rows) for rows in curves.values())))
    body = [[f"{point:g}", *(_curve_cell(rows[point]) for rows in curves.values())] for point in points]
    return markdown([of, *curves], body)


def _curve_cell(row: Row) -> str:
    return " / ".join(_plain(first_base(row, name)) for name in SUMMARY)


def first_base(row: Row, metric: str) -> float:
    """A metric on the shipped base."""
    return float(row["of_bases"][metric][0])


def plot_page(levels: Sequence[Row]) -> None:
    """The page's plots."""
    shares = [(row["method"], mean_interval(row["of_bases"]["sampled wrong"])) for row in main_rows(levels, 1.0)]
    intervals = [IntervalRow(name, one.value, max(one.low, 0), min(one.high, 1), name == BDHS) for name, one in shares]
    title = "Wrong objects and colours per object mention, mean of bases and 95% interval"
    interval_plot(RESULTS / "alignment-methods.png", title, intervals, reference=intervals[0].value)
    for of, curves in (("bias", bias_curves(levels)), ("images", image_curve(levels))):
        lines = [
            Line(name, [(point, first_base(rows[point], "sampled wrong")) for point in sorted(rows)])
            for name, rows in curves.items()
        ]
        title = f"Wrong objects and colours per object mention, by the {TITLES[of]}"
        line_plot(RESULTS / f"alignment-{of}.png", title, lines, shares=True)


def level_table(rows: Iterable[Row], metrics: Sequence[str]) -> str:
    """A Markdown table of levels, with a dash for None."""
    body = [[row["method"], *(_plain(row[name]) for name in metrics)] for row in rows]
    return markdown(["", *(SHOWN[name] for name in metrics)], body)


def difference_table(rows: Iterable[Row], metrics: Sequence[str], named: str) -> str:
    """A Markdown table of differences, bold where they hold, with a dash for None. named: the column with the names of
    the rows."""
    body = [[row[named], *(_bold(row[name]) for name in metrics)] for row in rows]
    return markdown(["", *(SHOWN[name] for name in metrics)], body)


def shown_difference(cell: Cell) -> str:
    """The difference with its interval over images, and with half its interval over bases where there are several."""
    (value, low, high), each = cell
    over_bases = f" ± {_plain(mean_interval(each).high - fmean(each))}" if len(each) > 1 else ""
    return f"{_signed(value)} [{_signed(low)}, {_signed(high)}]{over_bases}"


def holds(cell: Cell) -> bool:
    """Whether a difference has one sign on all bases and is not 0 by its interval over images, nor, of three bases or
    more, by the one over bases."""
    (value, low, high), each = cell
    over_bases = mean_interval(each)
    signs = [low, high, *each, *((over_bases.low, over_bases.high) if len(each) > 2 else ())]
    return all(one * value > 0 for one in signs)


def _bold(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"**{shown_difference(cell)}**" if holds(cell) else shown_difference(cell)


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"|{'|'.join(line)}|\n" for line in lines)


def _plain(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}".removeprefix("0")


def _signed(value: float) -> str:
    return ("−" if value < 0 else "+") + _plain(abs(value))


def fill_pages(tables: Mapping[str, str]) -> None:
    """Write the tables between the markers of the pages that have their names."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- / -->)", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")
