"""What a folder that survives any stop costs: `sample_dataset` against a loop that keeps its samples in memory.

Both sample the miniature from the same files, and the responses are compared. Memory is the peak of a process of its
own, after imports and the model, so that it shows whether it grows with the number of examples.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import median_of
from table import Options, Table

from mmbdhs import BDHSConfig, bdhs_sample, miniature
from mmbdhs.data import open_records
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.pairs import DatasetConfig, sample_dataset
from mmbdhs.pairs.shards import read_columns, shard_paths

CONFIG = BDHSConfig(max_iterations=2)
COLUMNS = {
    "pairs": ">5",
    "shard_size": ">10",
    "ours": ">8.1f",
    "loop": ">8.1f",
    "over_loop": ">9.2f",
    "peak_mib": ">8.0f",
}


def main(options: Options) -> None:
    print("\nms a pair, ours with its shards on disk; peak_mib: what one run adds to its process at most")
    count, sizes = (16, (8,)) if options.quick else (400, (50, 100, 200, 400))
    with tempfile.TemporaryDirectory() as folder, Table("dataset", COLUMNS, options) as table:
        data = write_scenes(Path(folder), count)
        for size in sizes:
            table.add(pairs=count, shard_size=size, **speed(data, count, size, 1 if options.quick else 3))
        for pairs in (16,) if options.quick else (500, 5000):
            data = write_scenes(Path(folder), pairs)
            table.add(pairs=pairs, shard_size=100, peak_mib=peak_of(data))


def write_scenes(folder: Path, count: int) -> Path:
    """A JSONL file of captioned scenes; its images are those of the first hundred."""
    for number in range(min(count, 100)):
        render(make_scene("balanced", number)).save(folder / f"{number}.png")
    texts = [caption(make_scene("balanced", number)) for number in range(min(count, 100))]
    rows = [
        {"images": [f"{i % 100}.png"], "prompt": CAPTION_PROMPT, "chosen": texts[i % 100], "key": i}
        for i in range(count)
    ]
    (folder / f"{count}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{count}.jsonl"


def speed(data: Path, count: int, shard_size: int, runs: int) -> dict[str, float]:
    model, processor = miniature.load()
    records, out = open_records(data), data.parent / "out"
    columns = [[record[name] for record in records] for name in ("images", "prompt", "chosen", "key")]
    images, prompts, references, keys = columns
    ours = partial(sample, model, processor, data, out, shard_size)
    loop = partial(bdhs_sample, model, processor, images, prompts, references, CONFIG, unlike, keys)
    ours()
    texts = [
        row["rejected"][0]["content"][0]["text"]
        for path in shard_paths(out)
        for row in read_columns(path, ["rejected"])
    ]
    assert texts == [one.rejected for one in loop()], "a shard depends on what is sampled with it"
    seconds = median_of(runs, ours, loop)
    return dict(zip(("ours", "loop"), (1e3 * one / count for one in seconds), strict=True)) | {
        "over_loop": seconds[0] / seconds[1]
    }


def sample(model: Any, processor: Any, data: Path, out: Path, shard_size: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    settings = DatasetConfig(shard_size=shard_size, drop_identical=False)
    sample_dataset(model, processor, data, out, CONFIG, unlike, settings, progress=False)


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


def peak_of(data: Path) -> float:
    """MiB that a run adds to the memory of a process that has run once before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (data, torch.get_num_threads()))


def _peak(data: Path, threads: int) -> float:
    torch.set_num_threads(threads)
    model, processor = miniature.load()
    first = write_scenes(Path(tempfile.mkdtemp(dir=data.parent)), 100)
    sample(model, processor, first, first.parent / "out", 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sample(model, processor, data, first.parent / "peak", 100)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
