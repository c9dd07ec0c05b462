"""Every speed claim, measured: `python benchmarks/run.py [name …] [--quick]` (all of them without a name)."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

BENCHMARKS = ("sampling",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer runs, for a first look")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: needs one of {', '.join(BENCHMARKS)}")
    sys.path.insert(0, str(Path(__file__).parent))
    for name in arguments.names or BENCHMARKS:
        importlib.import_module(name).main(quick=arguments.quick)


if __name__ == "__main__":
    main()
