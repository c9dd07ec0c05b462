"""Benchmarks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmbdhs.evaluation.amber import Amber
from mmbdhs.evaluation.benchmark import Benchmark
from mmbdhs.evaluation.coco_captions import Chair, ObjectHalBench
from mmbdhs.evaluation.gqa import GQA
from mmbdhs.evaluation.llava_bench import LlavaBench
from mmbdhs.evaluation.mmhal import MMHal
from mmbdhs.evaluation.mmvet import MMVet
from mmbdhs.evaluation.pope import Pope
from mmbdhs.evaluation.textvqa import TextVQA

READERS: Mapping[str, Callable[..., Benchmark]] = {
    "pope": Pope.read,
    "chair": Chair.read,
    "object_halbench": ObjectHalBench.read,
    "mmhal": MMHal.read,
    "mmhal_v": partial(MMHal.read, judge_sees_image=True),
    "llava_bench": LlavaBench.read,
    "textvqa": TextVQA.read,
    "gqa": GQA.read,
    "mmvet": MMVet.read,
    "amber": Amber.read,
}
"""From the name of a benchmark to what reads it from a folder."""


def read_benchmark(name: str, data: Path, **options: Any) -> Benchmark:
    """Read a benchmark from the folder data/name.

    name: of `READERS`.
    data: folder with a folder for each benchmark.
    options: of the benchmark's own `read`, such as `images`, the folder of its images.

    Raises ValueError for another name or option, FileNotFoundError that lists every missing file and where to get it.
    """
    if name not in READERS:
        raise ValueError(f"benchmark: needs one of {', '.join(READERS)}, got {name!r}")
    known = [option for option in inspect.signature(READERS[name]).parameters if option != "folder"]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name}: needs options of {', '.join(known)}, got {', '.join(unknown)}")
    return READERS[name](Path(data) / name, **options)
