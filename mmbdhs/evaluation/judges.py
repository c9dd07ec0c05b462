"""Judges of answers: a function, a model at an endpoint, or a VLM in memory. What they said is kept on disk."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from mmbdhs.data import load_images
from mmbdhs.evaluation.benchmark import JudgeRequest
from mmbdhs.evaluation.generation import generated
from mmbdhs.runs import describe
from mmbdhs.sampling import AnswerFile, ChatEndpoint, EndpointError, ask_each
from mmbdhs.vlm import VLM, Processor

_CHUNK = 32  # requests whose verdicts are kept together
_TRIAL = "Answer with the word yes."


@runtime_checkable
class Judge(Protocol):
    """What answers the requests of a benchmark.

    name: of the judge, which results state.
    """

    @property
    def name(self) -> str: ...

    def check(self) -> None:
        """Raise an error if the judge is not there."""

    def __call__(self, requests: Sequence[JudgeRequest]) -> Sequence[str | Exception]:
        """A verdict for each request, or the error in its place."""


class FunctionJudge:
    """A judge that is a function.

    function: (requests) -> a text for each of them.
    name: None for the function's own.
    """

    def __init__(self, function: Callable[[Sequence[JudgeRequest]], Sequence[str]], name: str | None = None) -> None:
        self._function, self.name = function, name or str(describe(function))

    def check(self) -> None:
        """Nothing, because a function is there."""

    def __call__(self, requests: Sequence[JudgeRequest]) -> Sequence[str]:
        """Raises TypeError for a function that returns anything but one text for each request."""
        found = self._function(requests)
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(requests):
            raise TypeError(f"judge: needs a list of {len(requests)} texts from {self.name}, got {found!r:.200}")
        return found


class EndpointJudge:
    """A judge at an OpenAI-compatible endpoint, whose client retries by itself on 429, 5xx and time-outs.

    endpoint: the model. Its settings, such as a temperature, are part of the judge's name.
    workers: number of requests at a time.
    """

    def __init__(self, endpoint: ChatEndpoint, workers: int = 8) -> None:
        self._endpoint, self._workers = endpoint, workers
        settings = ", ".join(f"{name}={value}" for name, value in sorted(endpoint.settings.items()))
        self.name = f"{endpoint.model_name} ({settings})" if settings else endpoint.model_name

    def check(self) -> None:
        """Ask for one word. Raises EndpointError if there is no answer."""
        self._endpoint.ask(_TRIAL)

    def __call__(self, requests: Sequence[JudgeRequest]) -> Sequence[str | Exception]:
        def ask(request: JudgeRequest) -> str:
            return self._endpoint.ask(request.text, _images(request))

        return ask_each(ask, {f"request {one.id!r}": one for one in requests}, self._workers, "skip")


class ModelJudge:
    """A VLM in memory as a judge. It answers greedily, one request at a time.

    model, processor: a VLM of `transformers` and its processor.
    max_new_tokens: of a verdict.
    """

    def __init__(self, model: nn.Module, processor: Processor, max_new_tokens: int = 1024) -> None:
        self._vlm, self._model, self._processor = VLM.of(model), model, processor
        self._limit, self.name = max_new_tokens, self._vlm.model.name_or_path or self._vlm.name

    def check(self) -> None:
        """Nothing, because the model is there."""

    def __call__(self, requests: Sequence[JudgeRequest]) -> Sequence[str]:
        with self._vlm.evaluation_mode():
            return [
                generated(self._vlm, self._processor, request.text, _images(request), self._limit)
                for request in requests
            ]


def as_judge(judge: Any) -> Judge:
    """A judge of what the user has: a Judge, a ChatEndpoint, or a function. Raises TypeError for anything else."""
    if isinstance(judge, Judge):
        return judge
    if isinstance(judge, ChatEndpoint):
        return EndpointJudge(judge)
    if callable(judge):
        return FunctionJudge(judge)
    raise TypeError(f"judge: needs a function, a ChatEndpoint or a ModelJudge, got {type(judge).__name__}")


class Verdicts(dict[str, str]):
    """What a judge said, by the id of its request.

    facts: of the judge, for the results: its name, a hash of all it was asked, and when it answered.
    """

    facts: dict[str, str]


def verdicts(judge: Judge, requests: Sequence[JudgeRequest], store: Path) -> Verdicts:
    """Ask the judge what has not been answered before.

    store: JSONL file that keeps every verdict under a hash of the judge's name, the text and the image.

    Raises EndpointError that counts the requests that failed. What was answered is kept, so that the next call asks
    for the rest alone.
    """
    file = AnswerFile(store)
    contents = [_content(judge, request) for request in requests]
    unknown = [number for number, content in enumerate(contents) if file.find(content) is None]
    failed: list[Exception] = []
    for begin in range(0, len(unknown), _CHUNK):
        chunk = unknown[begin : begin + _CHUNK]
        today = datetime.date.today().isoformat()
        for number, answer in zip(chunk, judge([requests[number] for number in chunk]), strict=True):
            if isinstance(answer, Exception):
                failed.append(answer)
            else:
                file.keep(contents[number], json.dumps({"verdict": answer, "date": today}))
    if failed:
        raise EndpointError(
            f"judge: needs a verdict for each of {len(requests)} answers, {len(failed)} failed ({failed[0]}); the "
            "others are kept, and the same call asks again for these"
        )
    return _collected(judge, requests, [json.loads(str(file.find(content))) for content in contents])


def _collected(judge: Judge, requests: Sequence[JudgeRequest], rows: list[dict[str, str]]) -> Verdicts:
    found = Verdicts({request.id: row["verdict"] for request, row in zip(requests, rows, strict=True)})
    dates = sorted({row["date"] for row in rows})
    asked = blake2b(json.dumps([request.text for request in requests]).encode(), digest_size=16).hexdigest()
    found.facts = {"name": judge.name, "requests_hash": asked, "first_date": dates[0], "last_date": dates[-1]}
    return found


def _content(judge: Judge, request: JudgeRequest) -> dict[str, Any]:
    image = blake2b(request.image.read_bytes(), digest_size=16).hexdigest() if request.image else None
    return {"judge": judge.name, "text": request.text, "image": image}


def _images(request: JudgeRequest) -> list[Any]:
    return load_images(str(request.image)) if request.image else []
