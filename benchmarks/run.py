"""Every claim, measured: `python benchmarks/run.py [name …] [--quick]` (all of them without a name)."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path

import torch
from table import Options

BENCHMARKS = (
    *("attention", "prefill", "mask", "splice", "decode", "decode_step"),
    *("sampling", "dataset", "scale", "evaluate", "logps", "preference_step", "rollout"),
    *("alignment", "rewards", "report_page"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small shapes and few runs, for a first look")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a CUDA device where there is one")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="append each row to FILE as soon as it is measured")
    parser.add_argument("--shape", choices=("7b",), help="of sampling: LLaVA-1.6-7B; on a CPU in 22 GiB and 20 minutes")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: needs one of {', '.join(BENCHMARKS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, torch finds none")
    if arguments.shape and arguments.names != ["sampling"]:
        parser.error("--shape: needs the benchmark 'sampling' alone")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("mmbdhs").setLevel(logging.INFO)  # which paths are live, and what is reserved and captured
    options = Options(arguments.quick, torch.device(device), arguments.rows, arguments.shape or "")
    for name in arguments.names or BENCHMARKS:
        importlib.import_module(name).main(options)


if __name__ == "__main__":
    sys.exit(main())
