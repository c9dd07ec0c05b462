"""Benchmarks as pure functions: from what a model said and what is true to metrics with 95% intervals.

A benchmark is one module with readers for its published files and a function that takes lists of equal length and
returns a `Result`, a frozen dataclass whose `metrics` are estimates. Nothing here runs a model or needs PyTorch.

Read in this order: `results` (what all have in common), `intervals` (estimates and their intervals), `pope`, `chair`
(with Object HalBench), `words` (English words and their singular), `files` (published files).
"""

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
from mmbdhs.evaluation.intervals import Estimate, mean_interval, ratio
from mmbdhs.evaluation.pope import PopeItems, PopeResult, PopeResults, parse_answer, pope, read_pope
from mmbdhs.evaluation.results import Result

__all__ = [
    "COCO_PHRASES",
    "OBJECT_HALBENCH_PHRASES",
    "CaptionObjects",
    "ChairResult",
    "Estimate",
    "ObjectHalBenchResult",
    "ObjectVocabulary",
    "PopeItems",
    "PopeResult",
    "PopeResults",
    "Result",
    "chair",
    "mean_interval",
    "object_halbench",
    "parse_answer",
    "pope",
    "ratio",
    "read_coco_captions",
    "read_coco_objects",
    "read_pope",
]
