"""One decoding step's attention: B branches over a shared prefix and a suffix each, in 32 heads of 128.

Of 3,000 prefix tokens the share ρ is hidden. Every contestant gets its keys in the layout that suits it best, prepared
outside of the timing, and query heads that share a key head stand side by side as rows of it. All results are compared
with float64 before they are timed. "hot": the same call again and again. "cold": its operands come from memory; before
each call the caches are flushed, and the same work on other operands brings the code back, which is not what is cold.

The memory's own rate is that of a sum over a large tensor, which takes turns with the contestants: where others use the
machine's memory too, it is slow when they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import contestants
import torch
from contestants import Operands
from measure import (
    Side,
    cache_flush,
    captured,
    copy_bandwidth,
    cuda_seconds,
    fma_peak,
    large,
    last_level_cache,
    median_of,
    repeats,
    thread_counts,
    wall_seconds,
)
from plot import Line, line_plot
from table import RESULTS, Options, Table

BF16, F32 = torch.bfloat16, torch.float32
TOLERANCE = {F32: 1e-5, BF16: 3e-2}
LARGEST = {"cpu": 1 << 30, "cuda": 16 << 30}  # bytes of keys and values that a contestant may spread one prefix to


@dataclass(frozen=True)
class Shape:
    dtype: torch.dtype
    rho: float
    branches: int
    suffix: int
    q_heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    prefix: int = 3000

    @property
    def visible(self) -> int:
        return round((1 - self.rho) * self.prefix)

    @property
    def bytes(self) -> int:
        """Every key and value that is seen once, queries and results."""
        rows = 2 * self.kv_heads * (self.visible + self.branches * self.suffix) + 2 * self.branches * self.q_heads
        return rows * self.head_dim * self.dtype.itemsize

    @property
    def flops(self) -> int:
        return 4 * self.branches * self.q_heads * self.head_dim * (self.visible + self.suffix)


CENTER = Shape(BF16, 0.99, 8, 64)
QUICK = tuple(replace(s, prefix=1000) for s in (CENTER, replace(CENTER, kv_heads=8), Shape(F32, 0.9, 8, 0)))
GROUPED = (replace(CENTER, kv_heads=8), Shape(BF16, 0.0, 8, 64, kv_heads=8), Shape(BF16, 0.99, 32, 128, kv_heads=8))
CORNERS = (
    Shape(BF16, 0.0, 1, 0),
    Shape(BF16, 0.0, 8, 0),
    Shape(BF16, 0.0, 32, 0),
    Shape(BF16, 0.0, 64, 64),
    Shape(BF16, 0.99, 32, 128),
)
SINGLE = (Shape(F32, 0.99, 8, 64), Shape(F32, 0.0, 1, 0), Shape(F32, 0.0, 8, 0), Shape(F32, 0.0, 32, 0))
SWEEPS = {
    "rho": [replace(CENTER, rho=rho) for rho in (0.0, 0.5, 0.9, 0.99)],
    "branches": [replace(CENTER, branches=branches) for branches in (1, 8, 32, 64)],
    "suffix": [replace(CENTER, suffix=suffix) for suffix in (0, 64, 128)],
}
FULL = tuple(dict.fromkeys([*(shape for sweep in SWEEPS.values() for shape in sweep), *GROUPED, *CORNERS, *SINGLE]))

COLUMNS = {
    **{"dtype": "<8", "heads": ">5", "rho": ">4", "branches": ">2", "suffix": ">3", "threads": ">1", "caches": "<4"},
    **{"ours": ">7.3f", "ours_steps": ">7.3f", "ours_index": ">7.3f"},
    **{name: ">8.3f" for name in contestants.OTHERS},
    **{"packed÷": ">5.1f", "dense÷": ">5.1f", "best÷": ">5.2f"},
    **{"read_gbs": ">5.1f", "floor": ">7.3f", "bound": "<6", "share": ">4.0%"},
}


@torch.no_grad()
def main(options: Options) -> None:
    print("\nms; ours_steps: suffixes stored step by step, ours_index: prefix keys picked by index;", end=" ")
    print("packed÷, dense÷, best÷: they or the fastest other ÷ ours; read_gbs: GB/s of reading alone;", end=" ")
    print("floor: of reading at that rate or of multiply-adds alone")
    columns = COLUMNS if options.device.type == "cuda" else {k: v for k, v in COLUMNS.items() if k != "flash_rows"}
    with Table("attention", columns, options) as table:
        for threads in thread_counts(options.device)[: 1 if options.quick else None]:
            torch.set_num_threads(threads)
            for shape in QUICK if options.quick else FULL:
                measure(shape, options, table)
    if not options.quick:
        plot_sweeps(table.rows, options.device)


def measure(shape: Shape, options: Options, table: Table) -> None:
    """Add the rows of one shape, hot and cold."""
    device = options.device
    sides, left_out = checked_sides(Operands(shape, device), options)
    others = Operands(shape, device, seed=1)
    spares = contestants.ours(others) | {
        name: contestants.OTHERS[name](others) for name in sides if name in contestants.OTHERS
    }
    sides["read"] = spares["read"] = large(device).sum
    if device.type == "cuda":
        capture(sides, spares, left_out)
    runs = 3 if options.quick else repeats(list(sides.values()), budget=2.0)
    for caches, clock in clocks(sides, spares, device).items():
        seconds = dict(zip(sides, median_of(runs, *sides.values(), seconds=clock), strict=True))
        reading = large(device).nbytes / seconds.pop("read")
        ours = min(seconds["ours"], seconds["ours_steps"])
        ratios = {name: value / ours for name, value in seconds.items() if not name.startswith("ours")}
        table.add(
            **{**asdict(shape), "dtype": str(shape.dtype).removeprefix("torch."), "heads": heads(shape)},
            threads=torch.get_num_threads(),
            caches=caches,
            **{name: 1e3 * value for name, value in seconds.items()},
            **{"packed÷": ratios["packed"], "dense÷": ratios.get("dense"), "best÷": min(ratios.values())},
            **floor(shape, caches, ours, reading, device),
            left_out=left_out,
        )


def capture(sides: dict[str, Side], spares: dict[str, Side], left_out: dict[str, str]) -> None:
    """Turn the sides and their spares into CUDA graphs, and leave out what cannot be one."""
    for name in list(sides):
        try:
            sides[name], spares[name] = captured(sides[name]), captured(spares[name])
        except RuntimeError as error:
            del sides[name], spares[name]
            left_out[name] = f"cannot be captured: {first_line(error)}"


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def clocks(sides: dict[str, Side], spares: dict[str, Side], device: torch.device) -> dict[str, Callable]:
    """How to time a side hot and cold; a spare does the side's work on other operands."""
    spare_of = {side: spares[name] for name, side in sides.items()}
    flush, on_gpu = cache_flush(device), device.type == "cuda"
    clock = cuda_seconds if on_gpu else wall_seconds
    return {
        # On a GPU a pause precedes a hot call, so that its launch is not timed.
        "hot": lambda call, _: clock(call, (lambda: torch.cuda._sleep(500_000)) if on_gpu else call),
        "cold": lambda call, _: clock(call, lambda: (flush(), spare_of[call]())),
    }


def heads(shape: Shape) -> str:
    return f"{shape.q_heads}/{shape.kv_heads}"


def floor(shape: Shape, caches: str, seconds: float, reading: float, device: torch.device) -> dict[str, Any]:
    """The time below which no kernel gets, what sets it, and how much of it `seconds` reaches.

    reading: bytes a second that were read meanwhile. Keys that stayed in the cache need no memory.
    """
    from_memory = caches == "cold" or shape.bytes > last_level_cache(device)
    copying, multiplying = copy_bandwidth(device), fma_peak(device, shape.dtype)
    limits = {"memory": shape.bytes / reading if from_memory else 0.0, "fma": shape.flops / multiplying}
    bound = max(limits, key=limits.get)
    shares = {f"{name}_share": limit / seconds for name, limit in limits.items()}
    rates = {"read_gbs": reading / 1e9, "copy_gbs": copying / 1e9, "fma_gflops": multiplying / 1e9}
    return rates | {"floor": 1e3 * limits[bound], "bound": bound, "share": shares[f"{bound}_share"], **shares}


def checked_sides(operands: Operands, options: Options) -> tuple[dict[str, Side], dict[str, str]]:
    """The contestants that agree with float64, and why others are left out."""
    sides, left_out = dict(contestants.ours(operands)), {}
    shape = operands.shape
    for name, make in contestants.OTHERS.items():
        if name == "flex" and (options.quick or shape not in (CENTER, *CORNERS)):
            left_out[name] = "compiles for minutes: only at a few shapes of the full run"
        elif (spread := contestants.spread_bytes(name, shape)) > LARGEST[options.device.type]:
            left_out[name] = f"its copies of the prefix need {spread / 2**30:.1f} GiB"
        else:
            try:
                sides[name] = make(operands)
                sides[name]()
            except RuntimeError as error:
                sides.pop(name, None)
                left_out[name] = first_line(error)
    truth = operands.truth()
    for name, side in sides.items():
        error = (side().double() - truth).abs().max().item()
        assert error < TOLERANCE[shape.dtype], f"{name} is {error:.1e} away from float64 at {shape}"
    return sides, left_out


def plot_sweeps(rows: list[dict[str, Any]], device: torch.device) -> None:
    """One picture for each swept quantity: cold, the most threads measured."""
    threads = max(row["threads"] for row in rows)
    for quantity, shapes in SWEEPS.items():
        wanted = [{**asdict(shape), "dtype": "bfloat16", "threads": threads, "caches": "cold"} for shape in shapes]
        chosen = [next(row for row in rows if want.items() <= row.items()) for want in wanted]
        lines = [
            Line(name, [(row[quantity], row[name]) for row in chosen if name in row])
            for name in ("ours", "packed", "two_level", "compacted", "dense")
        ]
        title = f"Attention of a decoding step, ms: bf16, {threads} thread(s), cold; over {quantity}"
        line_plot(RESULTS / f"attention-{quantity}-{device.type}.png", title, lines)
