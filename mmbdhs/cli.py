"""The command line: `python -m mmbdhs <command>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# Commands with many options, whose modules take seconds to import.
_WITH_OWN_PARSER = {
    "compare": "mmbdhs.evaluation.compare_command",
    "sample": "mmbdhs.pairs.command",
    "train": "mmbdhs.training.command",
    "tune": "mmbdhs.pairs.tune_command",
}


def _doctor(_: argparse.Namespace) -> int:
    from mmbdhs import doctor

    facts = doctor.report()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from mmbdhs.miniature import demo
    from mmbdhs.runs import FolderInUseError

    logging.disable_progress_bar()
    if arguments.stats:
        demo.print_stats(arguments.stats)
        return 0
    try:
        demo.run(arguments.out, arguments.pairs, color=sys.stdout.isatty() or arguments.color)
    except FolderInUseError as error:
        print(f"mmbdhs demo: {error}", file=sys.stderr)
        return 1
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from mmbdhs.pairs import write_report

    try:
        print(write_report(arguments.folder, arguments.output, most=arguments.most))
    except (ValueError, OSError, ImportError) as error:
        print(f"mmbdhs report: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(words: Sequence[str]) -> int:
    from mmbdhs import miniature
    from mmbdhs.miniature import benchmarks

    command = import_module("mmbdhs.evaluation.command")
    shipped = command.Shipped(miniature.path(), benchmarks.write_benchmarks, benchmarks.BENCHMARK_OPTIONS)
    return int(command.main(words, shipped))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs an integer of at least 1, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["evaluate"]:
        return _evaluate(words[1:])
    if words[:1] and words[0] in _WITH_OWN_PARSER:
        return import_module(_WITH_OWN_PARSER[words[0]]).main(words[1:])
    parser = argparse.ArgumentParser(prog="mmbdhs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="print the live backend and the versions of everything it rests on")
    doctor.set_defaults(run=_doctor)
    commands.add_parser("compare", help="compare runs of evaluate with each other")
    demo = commands.add_parser("demo", help="sample rejected responses from the embedded miniature")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for pairs and page")
    demo.add_argument("--pairs", type=_count, default=12, help="how many pairs to sample")
    demo.add_argument("--color", action="store_true", help="mark changed words in colour even when piped")
    demo.add_argument(
        "--stats",
        type=_count,
        nargs="?",
        const=200,
        metavar="N",
        help="share of wrong captions of N images by ρ_th instead",
    )
    demo.set_defaults(run=_demo)
    commands.add_parser("evaluate", help="score a model on published benchmarks")
    commands.add_parser("sample", help="sample a rejected response for every example of a data set")
    report = commands.add_parser("report", help="write a page to look at the pairs of a run")
    report.add_argument("folder", type=Path, help="run folder")
    report.add_argument("--output", type=Path, metavar="FILE", help="the page; default: report.html in the folder")
    report.add_argument("--most", type=_count, default=5000, metavar="N", help="how many pairs the page has at most")
    report.set_defaults(run=_report)
    commands.add_parser("train", help="align a model with preference pairs")
    commands.add_parser("tune", help="try settings of sampling on a small sample of a data set")
    arguments = parser.parse_args(words)
    return arguments.run(arguments)
