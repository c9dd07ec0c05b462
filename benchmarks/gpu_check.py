"""`make gpu-check`: build for the CUDA device at hand, test, benchmark, and write everything into one JSON file.

Needs torch, transformers, sentence-transformers, pybind11, CMake and nvcc, for the tests pytest and hypothesis too,
and no network. A stage that fails or runs out of time is recorded, and the next one runs.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "sentence-transformers", "triton", "numpy", "pybind11", "pytest", "hypothesis")
# Seconds for each stage, together less than nine minutes.
BUILD = 90
TESTS = {"tests": ("gpu and not slow", 70), "sanitizer": ("gpu and slow", 70)}  # pytest's -m
BENCHMARKS = {
    "mask": 10,
    "attention": 80,
    "prefill": 30,
    "decode": 60,
    "sampling": 70,
    "logps": 25,
    "preference_step": 30,
}
KEPT_OUTPUT = 4000  # characters of a failing stage's output


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: a CPU build"
        print(f"gpu-check: needs a CUDA device, torch {torch.__version__} finds none (its CUDA: {built})")
        return 1
    device = torch.cuda.get_device_name()
    report = {"device": describe(torch), "versions": {name: installed(name) for name in PACKAGES}, "stages": {}}
    path = RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MMBDHS_CUDA": "on",
        "MMBDHS_CUDA_ARCHS": "".join(map(str, torch.cuda.get_device_capability())),
    }
    stages = {"build": build}
    stages |= {name: functools.partial(gpu_tests, *selection) for name, selection in TESTS.items()}
    stages |= {name: functools.partial(benchmark, name) for name in BENCHMARKS}
    for name, run in stages.items():
        report["stages"][name] = run(environment)
        print(f"gpu-check: {name}: {report['stages'][name]['outcome']}", flush=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"gpu-check: wrote {path}")
    return int(any(stage["outcome"] != "passed" for stage in report["stages"].values()))


def describe(torch: Any) -> dict[str, Any]:
    """The device, its driver, and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "driver": first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "torch_cuda": torch.version.cuda,
        "nvcc": first_line(["nvcc", "--version"], "release"),
        "python": platform.python_version(),
        "commit": first_line(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "date": time.strftime("%Y-%m-%d"),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_line(command: list[str], word: str = "") -> str | None:
    """The first line of a command's output that holds `word`; None without such a command or line."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((line.strip() for line in lines if word in line), None)


def build(environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--build-temp=build/gpu-check"]
    return timed(command, BUILD, environment)


def gpu_tests(marks: str, limit: float, environment: dict[str, str]) -> dict[str, Any]:
    """Counts of outcomes of the tests so marked, and the text of what failed."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"outcome": f"not run: {' and '.join(missing)} not installed", "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", marks, f"--junitxml={file}"]
        record = timed(command, limit, environment)
        if file.exists():
            record |= outcomes(ElementTree.parse(file).getroot())
    return record


def outcomes(root: ElementTree.Element) -> dict[str, Any]:
    """What a JUnit report says."""
    suite = root.find("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = {}
    for case in root.iter("testcase"):
        for fault in (*case.findall("failure"), *case.findall("error")):
            failed[f"{case.get('classname')}::{case.get('name')}"] = (fault.text or "")[-KEPT_OUTPUT:]
    return {"counts": counts, "failed": failed}


def benchmark(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """The rows measured until the benchmark ended or its time was up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, "benchmarks/run.py", name, "--device", "cuda", "--rows", str(file)]
        record = timed(command, BENCHMARKS[name], environment)
        lines = file.read_text().splitlines() if file.exists() else []
    return record | {"rows": [json.loads(line) for line in lines]}


def timed(command: list[str], limit: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run in the repository's root. Records the outcome, the seconds, and the end of a failure's output."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # A process group and a file: what a killed compiler left running would hold a pipe open.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            outcome = "failed" if process.wait(limit) else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = f"timed out after {limit} s"
        log.seek(0)
        output = log.read()
    record = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
    return record if outcome == "passed" else record | {"output": output[-KEPT_OUTPUT:]}


if __name__ == "__main__":
    sys.exit(main())
