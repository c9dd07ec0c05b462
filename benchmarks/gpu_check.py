"""`make gpu-check`: build for the CUDA device at hand, test, benchmark, and write everything into one JSON file.

Needs torch, transformers, sentence-transformers, pybind11, CMake and nvcc, for the tests pytest and hypothesis too,
and no network. A stage that fails or runs out of time is recorded, and the next one runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "sentence-transformers", "triton", "numpy", "pybind11", "pytest", "hypothesis")
KEPT_OUTPUT = 4000  # characters of a failing stage's output
SECONDS = 570  # for all stages; those for which no time is left can be named in another call
CHECK, CHECK_SOURCES = ROOT / "build" / "gpu-check" / "cuda_check", ROOT / "tests" / "helpers" / "emulator"
COUNTERS = (
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "gpu__time_duration.sum",
)
LEAST = 10  # seconds: with less a stage is not begun

Environment = dict[str, str]


@dataclass(frozen=True)
class Stage:
    """What to run, and the seconds after which it is stopped."""

    run: Callable[[Environment, float], dict[str, Any]]
    limit: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Build, test and measure on the CUDA device at hand.")
    parser.add_argument("names", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)}; all of them by default")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(STAGES)):
        parser.error(f"unknown stage {unknown[0]!r}: needs one of {', '.join(STAGES)}")
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
    chosen = [name for name in STAGES if not names or name in names or name == "build"]
    run_stages(chosen, environment, report["stages"], lambda: save(report, path))
    return int(any(stage["outcome"] != "passed" for stage in report["stages"].values()))


def run_stages(
    names: list[str], environment: Environment, records: dict[str, dict[str, Any]], done: Callable[[], None]
) -> None:
    """Run the stages one after another, within the time for all. Calls `done` after each."""
    end = time.monotonic() + SECONDS
    for name in names:
        left = end - time.monotonic()
        if left < LEAST:
            records[name] = {"outcome": f"not run: no time left, name it in a call of its own ({name})"}
        else:
            records[name] = STAGES[name].run(environment, min(STAGES[name].limit, left))
        print(f"gpu-check: {name}: {records[name]['outcome']}", flush=True)
        done()


def save(report: dict[str, Any], path: Path) -> None:
    """Write the report, and a copy of it to the folder that $OUT names."""
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if folder := os.environ.get("OUT"):
        shutil.copy(path, folder)


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


def build(environment: Environment, limit: float) -> dict[str, Any]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--build-temp=build/gpu-check"]
    return timed(command, limit, environment)


def build_check(environment: Environment, limit: float) -> dict[str, Any]:
    """Build the program that runs every kernel without torch, and run all of its cases."""
    cuda = ROOT / "csrc"
    sources = [CHECK_SOURCES / "cuda_check.cu", *sorted(cuda.rglob("*.cu"))]
    sources += [cuda / "image_mask/image_mask.cpp", cuda / "random/philox.cpp"]
    CHECK.parent.mkdir(parents=True, exist_ok=True)
    architecture = f"-arch=sm_{environment['MMBDHS_CUDA_ARCHS']}"
    command = ["nvcc", "-std=c++17", "-O2", "-lineinfo", architecture, f"-I{cuda}", *map(str, sources)]
    start = time.monotonic()
    record = timed([*command, "-o", str(CHECK)], limit, environment)
    if record["outcome"] == "passed":
        record |= timed([str(CHECK)], max(limit - (time.monotonic() - start), 1), environment)
    return record


def sanitizer(tool: str, environment: Environment, limit: float) -> dict[str, Any]:
    """A tool of compute-sanitizer over the program that `build_check` has built."""
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not CHECK.exists() or not Path(path).exists():
        missing = CHECK.name if Path(path).exists() else "compute-sanitizer"
        return {"outcome": f"not run: there is no {missing}"}
    return timed([path, "--tool", tool, "--error-exitcode", "9", str(CHECK), "quick"], limit, environment)


def counters(environment: Environment, limit: float) -> dict[str, Any]:
    """What the device's counters say of the attention kernels: how busy the memory was, and how many warps."""
    path = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(path).exists():
        return {"outcome": "not run: there is no ncu"}
    program = [sys.executable, "benchmarks/run.py", "attention", "--quick", "--device", "cuda"]
    profiler = [path, "--csv", "--metrics", ",".join(COUNTERS), "--launch-count", "12"]
    profiler += ["--kernel-name", "regex:shared_prefix_kernel|masked_kernel|combine_kernel"]
    record = timed([*profiler, *program], limit, environment, keep_output=True)
    rows = [line for line in record.pop("output", "").splitlines() if line.startswith('"')]
    return record | {"rows": rows}


def gpu_tests(environment: Environment, limit: float) -> dict[str, Any]:
    """Counts of outcomes of the tests that need a device, and the text of what failed."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"outcome": f"not run: {' and '.join(missing)} not installed"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", f"--junitxml={file}"]
        command.append("--continue-on-collection-errors")  # files whose libraries this machine lacks
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


def benchmark(name: str, environment: Environment, limit: float) -> dict[str, Any]:
    """The rows measured until the benchmark ended or its time was up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, "benchmarks/run.py", *name.split(), "--device", "cuda", "--rows", str(file)]
        record = timed(command, limit, environment)
        lines = file.read_text().splitlines() if file.exists() else []
    return record | {"rows": [json.loads(line) for line in lines]}


def timed(command: list[str], limit: float, environment: Environment, keep_output: bool = False) -> dict[str, Any]:
    """Run in the repository's root. Records the outcome, the seconds, what the library said, and the end of a failure's
    output, or all output."""
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
            outcome = f"timed out after {limit:.0f} s"
        log.seek(0)
        output = log.read()
    record: dict[str, Any] = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
    if said := list(dict.fromkeys(line for line in output.splitlines() if line.startswith("mmbdhs: "))):
        record["said"] = said
    if keep_output:
        return record | {"output": output}
    return record if outcome == "passed" else record | {"output": output[-KEPT_OUTPUT:]}


# What a first contact needs comes first, and what a kernel may fail at comes before what takes long.
STAGES = {
    "build": Stage(build, 90),
    "check": Stage(build_check, 60),
    "tests": Stage(gpu_tests, 110),
    "decode_step": Stage(partial(benchmark, "decode_step"), 100),
    "sampling": Stage(partial(benchmark, "sampling --shape 7b"), 150),
    "attention": Stage(partial(benchmark, "attention"), 80),
    **{tool: Stage(partial(sanitizer, tool), 30) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")},
    "counters": Stage(counters, 60),
    "decode": Stage(partial(benchmark, "decode"), 60),
    "mask": Stage(partial(benchmark, "mask"), 25),
    "prefill": Stage(partial(benchmark, "prefill"), 30),
    "logps": Stage(partial(benchmark, "logps"), 30),
    "preference_step": Stage(partial(benchmark, "preference_step"), 40),
}


if __name__ == "__main__":
    sys.exit(main())
