"""The command line: `python -m mmbdhs <command>`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmbdhs.native import backend


def _doctor(_: argparse.Namespace) -> int:
    facts = backend.report()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mmbdhs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="print the live backend and the versions of everything it rests on")
    doctor.set_defaults(run=_doctor)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)
