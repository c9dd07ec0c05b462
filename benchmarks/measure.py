"""What all benchmarks share: timing, memory, the machine, and where results go."""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def median_of(runs: int, *sides: Callable[[], Any]) -> list[float]:
    """Median seconds of each side, after a warm-up, the sides taking turns so that drift hits them alike."""
    for side in sides:
        side()
    times = [[_seconds(side) for side in sides] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(call: Callable[[], Any]) -> float:
    """MiB that the process holds at most during `call`, above what it held before (Linux)."""
    page = 4096 / 2**20

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    ctypes.CDLL(None).malloc_trim(0)  # what an earlier run freed would hide what this one needs
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(peak[0] - before, 0.0)


@contextmanager
def stages(**methods: tuple[Any, str]) -> Iterator[dict[str, float]]:
    """Seconds spent inside each named method while the context lasts; nested time counts once, for the inner one."""
    spent: dict[str, float] = defaultdict(float)
    open_stages: list[str] = []
    mark = [time.perf_counter()]

    def book() -> None:
        now = time.perf_counter()
        if open_stages:
            spent[open_stages[-1]] += now - mark[0]
        mark[0] = now

    def wrapped(stage: str, method: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            book()
            open_stages.append(stage)
            try:
                return method(*args, **kwargs)
            finally:
                book()
                open_stages.pop()

        return call

    originals = {stage: getattr(owner, name) for stage, (owner, name) in methods.items()}
    for stage, (owner, name) in methods.items():
        setattr(owner, name, wrapped(stage, originals[stage]))
    try:
        yield spent
    finally:
        for stage, (owner, name) in methods.items():
            setattr(owner, name, originals[stage])


def save(benchmark: str, row: dict[str, Any], keep: bool) -> None:
    """Print `row` as one JSON line, with device and versions; `keep` appends it to results/<benchmark>.jsonl."""
    import transformers

    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    line = json.dumps({"benchmark": benchmark, **row, **machine})
    print(line)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
            file.write(line + "\n")


def _processor() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{len(names)} × {names[0]}" if names else platform.processor()
