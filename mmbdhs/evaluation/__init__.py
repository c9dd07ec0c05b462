"""Benchmarks: from what a model said and what is true to metrics with 95% intervals, and the runs that ask the model.

Scores are pure functions and need no PyTorch. Read in this order: `results` (what all have in common), `intervals`
(estimates and their intervals), `pope`, `chair` (with Object HalBench), `words` (English words and their singular),
`files` (published files). A `Benchmark` of `benchmark` asks a model and a judge and counts what they say. There is one
each in `pope`, `amber`, `gqa`, `textvqa`, `mmhal`, `llava_bench` and `mmvet`, and two in `coco_captions`. `registry`
reads them by name, `verdicts` reads what judges say, and `scores` makes metrics of the counts.

`runner` (`evaluate`, the front door) runs a model over a benchmark: `answers` decodes the questions of an image over
their `shared_prompts`, or by `generation`, `answer_records` keeps them, `judges` asks a judge, and `command` is
`mmbdhs evaluate`. `compare`, `compare_command` and `compare_plot` set runs against each other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmbdhs.evaluation.benchmark import Benchmark, JudgeRequest, Outcome, Question, Unjudged
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
from mmbdhs.evaluation.compare import Difference, compare
from mmbdhs.evaluation.files import missing_images
from mmbdhs.evaluation.intervals import Estimate, mean_interval, quotient, ratio
from mmbdhs.evaluation.pope import PopeItems, PopeResult, PopeResults, parse_answer, pope, read_pope
from mmbdhs.evaluation.registry import READERS, read_benchmark
from mmbdhs.evaluation.results import Result, text_table
from mmbdhs.evaluation.scores import estimates

if TYPE_CHECKING:
    from mmbdhs.evaluation.judges import EndpointJudge as EndpointJudge
    from mmbdhs.evaluation.judges import ModelJudge as ModelJudge
    from mmbdhs.evaluation.runner import EvaluationResult as EvaluationResult
    from mmbdhs.evaluation.runner import evaluate as evaluate

__all__ = [
    "COCO_PHRASES",
    "OBJECT_HALBENCH_PHRASES",
    "READERS",
    "Benchmark",
    "CaptionObjects",
    "ChairResult",
    "Difference",
    "EndpointJudge",
    "Estimate",
    "EvaluationResult",
    "JudgeRequest",
    "ModelJudge",
    "ObjectHalBenchResult",
    "ObjectVocabulary",
    "Outcome",
    "PopeItems",
    "PopeResult",
    "PopeResults",
    "Question",
    "Result",
    "Unjudged",
    "chair",
    "compare",
    "estimates",
    "evaluate",
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
    "text_table",
]

# What runs models, and so takes seconds to import, resolves at first use.
_HOMES = {
    "EndpointJudge": "judges",
    "EvaluationResult": "runner",
    "ModelJudge": "judges",
    "evaluate": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
