"""A run of one model over one benchmark: a folder of answers that grows, may be killed at any moment, and goes on."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from torch import nn

from mmbdhs.checks import instance, integer
from mmbdhs.data import data_fingerprint, write_jsonl, write_whole
from mmbdhs.evaluation.answer_records import AnswerRecords
from mmbdhs.evaluation.answers import Answerer, by_image
from mmbdhs.evaluation.benchmark import Benchmark, JudgeRequest, Question
from mmbdhs.evaluation.compare import OUTCOMES, RESULTS
from mmbdhs.evaluation.files import check_unique, missing_images
from mmbdhs.evaluation.intervals import Estimate
from mmbdhs.evaluation.judges import Judge, Verdicts, as_judge, verdicts
from mmbdhs.evaluation.registry import read_benchmark
from mmbdhs.evaluation.results import text_table
from mmbdhs.evaluation.scores import estimates
from mmbdhs.runs import (
    check_same_run,
    describe,
    installed_versions,
    locked,
    model_identity,
    read_record,
    write_record,
)
from mmbdhs.sampling import SamplingConfig
from mmbdhs.vlm import Processor

ANSWERS, VERDICTS = "answers.jsonl", "verdicts.jsonl"
_BLOCK = 256  # questions that are answered without regard to what comes before and after them
_PACKAGES = ("mmbdhs", "torch", "transformers", "tokenizers", "pillow", "numpy")
_NAMES = ("model.name",)  # what has the same fingerprint may be elsewhere
_STAND_IN = "A stand-in for the answer."  # to ask a benchmark whether it needs a judge


@dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate`. Its text is a table with a row for each group of questions.

    benchmark: its name.
    folder: with answers.jsonl, outcomes.jsonl, results.json and, of a judge, verdicts.jsonl.
    metrics: by group, "all" first, and by name.
    """

    benchmark: str
    folder: Path
    metrics: Mapping[str, Mapping[str, Estimate]]

    def __str__(self) -> str:
        header = [self.benchmark, *self.metrics["all"], "questions"]
        rows = [
            [group, *(one.with_interval for one in found.values()), str(max(one.count for one in found.values()))]
            for group, found in self.metrics.items()
        ]
        return text_table([header, *rows])


def evaluate(
    model: nn.Module,
    processor: Processor,
    benchmark: str | Benchmark,
    *,
    data: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str],
    judge: Any = None,
    config: SamplingConfig | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Answer the questions of a benchmark and score the answers, in the folder output_dir/benchmark.

    The folder gets answers.jsonl as answers come, image by image; outcomes.jsonl with what each answer counts;
    verdicts.jsonl with what a judge said; and results.json with the metrics and all that they depend on. The same call
    continues a run that was killed, and on a CPU the answers end as those of an undisturbed run, to the byte.

    model, processor: a VLM of `transformers` and its processor.
    benchmark: its name, or what `read_benchmark` returns.
    data: folder with a folder for each benchmark, for a name.
    output_dir: folder for the results.
    judge: for a benchmark that needs one: a function from requests to texts, a `ChatEndpoint`, or a `ModelJudge`.
    config: how tokens are drawn; None for greedy answers as long as the benchmark's longest.
    limit: how many questions are asked, from the first image on; None for all.
    progress: whether to show a progress bar.

    Raises FileNotFoundError for missing files and images, ValueError for wrong files and for a missing judge,
    `mmbdhs.runs.FolderInUseError` for a folder that holds another run, all before the model runs, ExampleError for a
    question that cannot be asked, and EndpointError for a judge that fails.
    """
    if isinstance(benchmark, str):
        if data is None:
            raise ValueError(f"data: needs the folder of the files of {benchmark}, got None")
        benchmark = read_benchmark(benchmark, Path(data))
    return EvaluationRun(benchmark, output_dir, judge, limit).run(model, processor, config, progress)


class EvaluationRun:
    """A run whose files and judge have been checked. The arguments are those of `evaluate`."""

    def __init__(
        self, benchmark: Benchmark, output_dir: str | os.PathLike[str], judge: Any = None, limit: int | None = None
    ) -> None:
        self._benchmark, self.folder = benchmark, Path(output_dir) / benchmark.name
        every = benchmark.questions()
        check_unique(Path(benchmark.name), [question.id for question in every])
        if limit is not None:
            integer("limit", limit, 1)
        self._every, self._questions = every, by_image(every)[:limit]
        missing_images(self._questions)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"output_dir: needs a folder, {self.folder} is a file")
        self._judge: Judge | None = None
        if benchmark.judge_requests({question.id: _STAND_IN for question in every}):
            if judge is None:
                raise ValueError(f"judge: {benchmark.name} needs a judge of its answers, got None")
            self._judge = as_judge(judge)
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            self._records = AnswerRecords(self.folder / ANSWERS, self._questions)
        if self._judge and len(self._records.answers) < len(self._questions):
            self._judge.check()

    def run(
        self, model: nn.Module, processor: Processor, config: SamplingConfig | None = None, progress: bool = True
    ) -> EvaluationResult:
        """Answer the questions that have no answer yet, and score all answers."""
        config = config or SamplingConfig(temperature=0, max_new_tokens=self._benchmark.max_new_tokens)
        instance("config", config, SamplingConfig)
        with locked(self.folder):
            self._records = AnswerRecords(self.folder / ANSWERS, self._questions)
            self._claim(model, processor, config)
            self._answer(model, processor, config, progress)
            return self._score()

    def _claim(self, model: nn.Module, processor: Processor, config: SamplingConfig) -> None:
        """Record what the answers depend on, or compare it with what the folder records."""
        asked = [
            {"id": one.id, "text": one.text, "image": one.image.name, "bytes": one.image.stat().st_size}
            for one in self._questions
        ]
        identity = {
            "benchmark": {"name": self._benchmark.name, **data_fingerprint(asked)},
            "decoding": describe(config.identity()),
            **model_identity(model, processor),
            "versions": installed_versions(*_PACKAGES),
        }
        if read_record(self.folder):
            check_same_run(self.folder, identity, _NAMES)
        elif self._records.answers:
            raise ValueError(f"output_dir: {self.folder} has answers but no run.json. Choose another folder")
        else:
            write_record(self.folder, identity)

    def _answer(self, model: nn.Module, processor: Processor, config: SamplingConfig, progress: bool) -> None:
        from tqdm.auto import tqdm

        done = len(self._records.answers)
        name, count, answerer = self._benchmark.name, len(self._questions), Answerer(model, processor, config)
        with tqdm(total=count, initial=done, desc=name, unit="answer", disable=not progress) as bar:
            for block in _blocks(self._questions):
                if block.stop <= done:
                    continue
                answers = answerer.answers(self._questions[block.start : block.stop])
                # What is there of this block is answered again: the last bits of a logit depend on its company.
                for answer in islice(answers, max(done - block.start, 0), None):
                    self._records.append([answer])
                    bar.update()

    def _score(self) -> EvaluationResult:
        answers = self._records.by_id()
        # The questions beyond the limit get a stand-in, and do not count.
        every = {question.id: answers.get(question.id, "") for question in self._every}
        requests = self._benchmark.judge_requests(every)
        judged = self._judged([request for request in requests if request.id in answers])
        said = {request.id: judged.get(request.id, "") for request in requests}
        outcomes = [one for one in self._benchmark.outcomes(every, said) if one.id in answers]
        metrics = estimates(outcomes)
        write_jsonl(self.folder / OUTCOMES, (one.as_row() for one in outcomes))
        results = {
            "benchmark": self._benchmark.name,
            "facts": dict(self._benchmark.facts),
            "questions": {"asked": len(answers), "published": len(self._every)},
            **{name: value for name, value in read_record(self.folder).items() if name != "benchmark"},
            "judge": judged.facts if judged else None,
            "date": datetime.date.today().isoformat(),
            "metrics": {group: {name: _plain(one) for name, one in found.items()} for group, found in metrics.items()},
        }
        write_whole(self.folder / RESULTS, [json.dumps(results, indent=2, ensure_ascii=False).encode() + b"\n"])
        return EvaluationResult(self._benchmark.name, self.folder, metrics)

    def _judged(self, requests: Sequence[JudgeRequest]) -> Verdicts:
        if not requests or self._judge is None:
            return Verdicts()
        found = verdicts(self._judge, requests, self.folder / "judge_cache.jsonl")
        write_jsonl(self.folder / VERDICTS, ({"question_id": name, "verdict": text} for name, text in found.items()))
        return found


def _blocks(questions: Sequence[Question]) -> Iterator[range]:
    """Ranges of at least 256 questions, except the last, that divide no image."""
    begin = end = 0
    for _, group in groupby(questions, key=lambda question: question.image):
        end += len(list(group))
        if end - begin >= _BLOCK:
            yield range(begin, end)
            begin = end
    if end > begin:
        yield range(begin, end)


def _plain(estimate: Estimate) -> dict[str, Any]:
    """The estimate in JSON, which has no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(estimate).items()}
