"""`mmbdhs evaluate`: from a model and published files to metrics."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.evaluation.benchmark import Benchmark
from mmbdhs.evaluation.judges import Judge, ModelJudge, as_judge
from mmbdhs.evaluation.registry import READERS, read_benchmark
from mmbdhs.evaluation.runner import EvaluationRun
from mmbdhs.runs import (
    FolderInUseError,
    check_device,
    check_known,
    fail,
    load_model,
    load_object,
    parse_options,
    parse_settings,
)
from mmbdhs.sampling import ChatEndpoint, EndpointError, SamplingConfig

DESCRIPTION = """Answer the questions of published benchmarks, greedily by default, and score the answers, with 95%
intervals. OUT/BENCHMARK gets answers.jsonl, outcomes.jsonl and results.json. The same command continues a run that was
stopped. docs/evaluation.md says which files DATA needs. With --model miniature everything runs on generated scenes."""
MINIATURE = "miniature"


class Shipped(NamedTuple):
    """A model that comes with the package, and how its benchmarks are made.

    model: folder of model and processor.
    write: (folder) -> writes the files of its benchmarks there.
    options: of `read_benchmark`, by benchmark.
    """

    model: Path
    write: Callable[[Path], object]
    options: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The options of `mmbdhs evaluate`.

    model_name_or_path: folder or name of model and processor, or miniature for the one that is shipped.
    benchmarks: names of benchmarks.
    output_dir: folder for the results.
    data: folder with a folder for each benchmark.
    benchmark_options: options of benchmarks, as BENCHMARK.OPTION=VALUE, such as pope.suffix= or gqa.images=FOLDER.
    judge: a model at an endpoint, folder or name of a local model, or module:function.
    judge_url: base URL of the judge's OpenAI-compatible endpoint. The key is in OPENAI_API_KEY.
    judge_settings: further arguments of each request to the endpoint, as KEY=VALUE.
    limit: how many questions of each benchmark are asked; None for all.
    max_new_tokens: of an answer; None for the benchmark's own number.
    temperature: of the answers; 0 for greedy ones.
    seed: of drawn answers.
    max_branches: how many answers decode at a time.
    num_workers: threads that read images; None: 4, or 0 on a CPU.
    device: such as cuda, cuda:1 or cpu; None: a GPU if there is one.
    dtype: dtype of the weights; auto: the stored one.
    config: YAML or JSON file with options; those of the command line override it.
    """

    model_name_or_path: str = field(metadata={"aliases": ["--model"]})
    benchmarks: list[str] = field(metadata={"aliases": ["--benchmark"]})
    output_dir: str = field(metadata={"aliases": ["--output", "--out"]})
    data: str | None = None
    benchmark_options: list[str] = field(default_factory=list)
    judge: str | None = None
    judge_url: str | None = None
    judge_settings: list[str] = field(default_factory=lambda: ["temperature=0"])
    limit: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    max_branches: int = 64
    num_workers: int | None = None
    device: str | None = None
    dtype: str = "auto"
    config: str | None = None

    def sampling(self, benchmark: Benchmark) -> SamplingConfig:
        """How the answers to a benchmark are drawn."""
        limit = benchmark.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        return SamplingConfig(
            temperature=self.temperature,
            max_new_tokens=limit,
            seed=self.seed,
            max_branches=self.max_branches,
            num_workers=self.num_workers,
        )


def main(argv: Sequence[str], shipped: Shipped) -> int:
    """Run the command. Returns the exit status: 1 if the folder holds another run or the run fails, 130 after Ctrl-C.
    Wrong arguments, files and judges, which are found before the model is loaded, end the process with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = parse_arguments(argv)
        runs = open_runs(options, shipped)
    except (OSError, ValueError, TypeError, ImportError, EndpointError) as error:
        raise SystemExit(fail("evaluate", error, 2)) from error
    try:
        name = str(shipped.model) if options.model_name_or_path == MINIATURE else options.model_name_or_path
        model, processor = load_model(name, options.dtype)
        model.to(check_device(options.device))
        for benchmark, run in runs:
            print(run.run(model, processor, options.sampling(benchmark)), end="\n\n")
    except (FolderInUseError, UnsupportedModelError, EndpointError, ImportError, OSError, ValueError) as error:
        return fail("evaluate", error, 1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def parse_arguments(argv: Sequence[str]) -> EvaluateOptions:
    """The command's options. Raises ValueError or TypeError for wrong arguments."""
    usage = "mmbdhs evaluate --model MODEL --benchmark BENCHMARK ... --data DATA --output OUT [OPTION ...]"
    (options,) = parse_options(argv, (EvaluateOptions,), usage, DESCRIPTION)
    check_known("benchmark", options.benchmarks, READERS)
    if repeated := {name for name in options.benchmarks if options.benchmarks.count(name) > 1}:
        raise ValueError(f"benchmark: needs every name once, got {', '.join(sorted(repeated))} twice")
    return options


def open_runs(options: EvaluateOptions, shipped: Shipped) -> list[tuple[Benchmark, EvaluationRun]]:
    """Every benchmark with its run, whose files, images and judge are there. Raises an error for what is wrong."""
    check_device(options.device)
    settings = _by_benchmark(options)
    data = _data(options, shipped)
    if options.model_name_or_path == MINIATURE:
        settings = {name: {**shipped.options.get(name, {}), **found} for name, found in settings.items()}
    benchmarks = [read_benchmark(name, data, **found) for name, found in settings.items()]
    for benchmark in benchmarks:
        options.sampling(benchmark)
    judge = _judge(options)
    return [(one, EvaluationRun(one, options.output_dir, judge, options.limit)) for one in benchmarks]


def _data(options: EvaluateOptions, shipped: Shipped) -> Path:
    if options.data is not None:
        return Path(options.data)
    if options.model_name_or_path != MINIATURE:
        raise ValueError("data: needs the folder with the files of the benchmarks, see docs/evaluation.md; got None")
    folder = Path(options.output_dir) / "data"
    shipped.write(folder)
    return folder


def _by_benchmark(options: EvaluateOptions) -> dict[str, dict[str, Any]]:
    """The options of each benchmark."""
    found: dict[str, dict[str, Any]] = {name: {} for name in options.benchmarks}
    for key, value in parse_settings(options.benchmark_options).items():
        name, _, option = key.partition(".")
        if name not in found:
            raise ValueError(f"benchmark_options: needs BENCHMARK.OPTION=VALUE of {', '.join(found)}, got {key!r}")
        found[name][option] = Path(value) if option == "images" else value
    return found


def _judge(options: EvaluateOptions) -> Judge | None:
    if options.judge is None:
        if options.judge_url is not None:
            raise ValueError("judge: needs the name of the model at judge_url, got None")
        return None
    if options.judge_url is not None:
        return as_judge(ChatEndpoint(options.judge_url, options.judge, parse_settings(options.judge_settings)))
    if ":" in options.judge:
        return as_judge(load_object("judge", options.judge))
    model, processor = load_model(options.judge, options.dtype)
    return ModelJudge(model.to(check_device(options.device)), processor)
