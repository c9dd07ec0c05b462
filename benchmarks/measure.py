"""What all benchmarks share: timing, memory, and the machine's own limits."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmbdhs.decoding.cuda_graphs import as_graph

Side = Callable[[], Any]


def median_of(runs: int, *sides: Side, before: Side = lambda: None, seconds: Callable | None = None) -> list[float]:
    """`warm_median_of` after a warm-up."""
    for side in sides:
        side()
    return warm_median_of(runs, *sides, before=before, seconds=seconds)


def warm_median_of(
    runs: int, *sides: Side, before: Side = lambda: None, seconds: Callable | None = None
) -> list[float]:
    """Median seconds of each side, the sides taking turns so that drift hits them alike.

    before: what to do, untimed, before each call. seconds: the clock, `wall_seconds` by default.
    """
    seconds = seconds or wall_seconds
    times = [[seconds(side, before) for side in sides] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def wall_seconds(call: Side, before: Side) -> float:
    """Seconds of the call, until its device has finished too."""
    before()
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def cuda_seconds(call: Side, before: Side) -> float:
    """Seconds that the call keeps the device busy: the work of `before` hides the time that its launch takes."""
    before()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def repeats(sides: list[Side], budget: float, most: int = 31) -> int:
    """How often all sides can be timed within `budget` seconds: 3 … `most` times."""
    for side in sides:
        side()
    once = sum(wall_seconds(side, lambda: None) for side in sides)
    return max(3, min(most, int(budget / once)))


def captured(call: Side) -> Side:
    """The call as a CUDA graph: what its kernels take, without the Python between them."""
    return as_graph(call, torch.device("cuda", torch.cuda.current_device())).replay


def thread_counts(device: torch.device) -> tuple[int, ...]:
    """The thread counts to measure with: 1, and 2 where the process has two cores; any one will do on a GPU."""
    return (1, 2) if device.type == "cpu" and len(os.sched_getaffinity(0)) > 1 else (1,)


@functools.cache
def last_level_cache(device: torch.device) -> int:
    """Bytes of the last cache before memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(path.read_text().strip("K\n")) << 10 for path in caches), default=32 << 20)


@functools.cache
def cache_flush(device: torch.device) -> Side:
    """A call that reads more than twice the last cache, so that what was there must come from memory again."""
    return torch.ones(5 * last_level_cache(device) // 8, device=device).sum  # 4-byte numbers: 2.5 times its size


@functools.cache
def large(device: torch.device) -> torch.Tensor:
    """What no cache holds: 128 MiB, on a GPU 2 GiB."""
    return torch.ones((128 << 20 if device.type == "cpu" else 2 << 30) // 4, device=device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy with the present number of threads."""
    return _copy_bandwidth(device, torch.get_num_threads())


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large square matrix product with the present number of threads."""
    return _gemm_rate(device, dtype, torch.get_num_threads())


def fma_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second at most: of the matrix product in `dtype`, or of float32 multiply-adds from a CPU's registers."""
    product = gemm_rate(device, dtype)
    return product if device.type == "cuda" else max(product, _multiply_add_rate() * torch.get_num_threads())


@functools.cache
def _multiply_add_rate() -> float:
    """The rounds of multiply-adds per second of one thread that does nothing else."""
    from mmbdhs.native import _extension

    def rate() -> float:
        begin = time.perf_counter()
        return _extension.multiply_add_rounds(10_000_000) / (time.perf_counter() - begin)

    return max(rate() for _ in range(5))


@functools.cache
def _copy_bandwidth(device: torch.device, _threads: int) -> float:
    source = large(device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source))


@functools.cache
def _gemm_rate(device: torch.device, dtype: torch.dtype, _threads: int) -> float:
    size = 1024 if device.type == "cpu" else 8192
    square = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _fastest(lambda: square @ square)


def _fastest(call: Side) -> float:
    """Seconds of the best run: a limit is what the machine can do undisturbed."""
    return min(wall_seconds(call, lambda: None) for _ in range(9))


def peak_memory(call: Side, device: torch.device) -> float:
    """MiB that the call holds at most, above what was held before: of the GPU, or of the process (Linux)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return _peak_resident(call)


def _peak_resident(call: Side) -> float:
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
        _synchronize()
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


@contextmanager
def gpu_busy() -> Iterator[list[float]]:
    """Gives a list that holds at the end the share of the time in which the GPU was busy, as nvidia-smi samples it; an
    empty one where there is no nvidia-smi."""
    found: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
    if shutil.which(command[0]) is None:
        yield found
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            process.terminate()
            shares = [float(line) / 100 for line in process.communicate()[0].split() if line.isdigit()]
    found += [statistics.mean(shares)] if shares else []
