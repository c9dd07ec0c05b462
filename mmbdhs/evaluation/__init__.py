"""Benchmarks as pure functions: from what a model said and what is true to metrics with 95% intervals.

A benchmark is one module with readers for its published files and a function that takes lists of equal length and
returns a `Result`, a frozen dataclass whose `metrics` are estimates. Nothing here runs a model or needs PyTorch.

Read in this order: `results` (what all have in common), `intervals` (estimates and their intervals), `pope`, `chair`
(with Object HalBench), `words` (English words and their singular), `files` (published files). A `Benchmark` of
`benchmark` asks a model and a judge and counts what they say. There is one each in `pope`, `amber`, `gqa`, `textvqa`,
`mmhal`, `llava_bench` and `mmvet`, and two in `coco_captions`. `registry` reads them by name, `verdicts` reads what
judges say, and `scores` makes metrics of the counts.
"""

from mmbdhs.evaluation.benchmark import Benchmark, JudgeRequest, Outcome, Question
from mmbdhs.evaluation.chair import (
    COCO_PHRASES,
    OBJECT_HALBENCH_PHRASES,
    CaptionObjects,
    ChairResult,
    ObjectHalBenchResult,
    ObjectVocabulary,
    chair,
    object_halbench,
    read_coco_captions,
    read_coco_objects,
)
from mmbdhs.evaluation.files import missing_images
from mmbdhs.evaluation.intervals import Estimate, mean_interval, quotient, ratio
from mmbdhs.evaluation.pope import PopeItems, PopeResult, PopeResults, parse_answer, pope, read_pope
from mmbdhs.evaluation.registry import READERS, read_benchmark
from mmbdhs.evaluation.results import Result
from mmbdhs.evaluation.scores import estimates

__all__ = [
    "COCO_PHRASES",
    "OBJECT_HALBENCH_PHRASES",
    "READERS",
    "Benchmark",
    "CaptionObjects",
    "ChairResult",
    "Estimate",
    "JudgeRequest",
    "ObjectHalBenchResult",
    "ObjectVocabulary",
    "Outcome",
    "PopeItems",
    "PopeResult",
    "PopeResults",
    "Question",
    "Result",
    "chair",
    "estimates",
    "mean_interval",
    "missing_images",
    "object_halbench",
    "parse_answer",
    "pope",
    "quotient",
    "ratio",
    "read_benchmark",
    "read_coco_captions",
    "read_coco_objects",
    "read_pope",
]
