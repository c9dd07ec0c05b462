"""Judges: functions, models in memory, and models at an endpoint over real HTTP."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation_runs import scenes
from helpers.pair_runs import loaded
from helpers.plain import picture

from mmbdhs.data import read_jsonl
from mmbdhs.evaluation import JudgeRequest
from mmbdhs.evaluation.judges import EndpointJudge, FunctionJudge, ModelJudge, as_judge, verdicts
from mmbdhs.evaluation.runner import evaluate
from mmbdhs.evaluation.verdicts import rating
from mmbdhs.sampling import ChatEndpoint, EndpointError

REQUESTS = [JudgeRequest(str(number), f"text {number}") for number in range(5)]


class Judging(ThreadingHTTPServer):
    """An endpoint that answers each request by a rule.

    rule: (text of the request, how often it was seen before) -> status and body; a body of None for a late answer.
    """

    def __init__(self, rule: Any) -> None:
        self.rule, self.seen, self.bodies = rule, Counter[str](), list[dict]()
        self.late = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Judging

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        self.server.bodies.append(body)
        status, answer = self.server.rule(text, self.server.seen[text])
        self.server.seen[text] += 1
        if answer is None:
            self.server.late.wait()
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


def said(text: str) -> tuple[int, bytes]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    return 200, json.dumps(completion).encode()


@contextmanager
def served(rule: Any, max_retries: int = 2, timeout: float = 30) -> Iterator[tuple[Judging, EndpointJudge]]:
    openai = pytest.importorskip("openai")
    server = Judging(rule)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=max_retries, timeout=timeout)
        yield server, EndpointJudge(ChatEndpoint(client, "judge"))
    finally:
        server.late.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses before it asks again take no time."""
    client = pytest.importorskip("openai")._base_client
    monkeypatch.setattr(client.BaseClient, "_calculate_retry_timeout", lambda *_, **__: 0.0)


def test_verdicts_come_over_http_and_are_asked_once(tmp_path: Path) -> None:
    with served(lambda text, _: said(f"Rating: {text[-1]}")) as (server, judge):
        judge.check()
        found = verdicts(judge, REQUESTS, tmp_path / "cache.jsonl")
        assert found == {str(n): f"Rating: {n}" for n in range(5)}
        assert server.seen == {"Answer with the word yes.": 1, **{f"text {n}": 1 for n in range(5)}}
        assert verdicts(judge, REQUESTS[::-1], tmp_path / "cache.jsonl") == found
        assert len(server.bodies) == 6
        assert found.facts["name"] == "judge" and found.facts["first_date"] == found.facts["last_date"]
        other = [JudgeRequest("0", "text 0!")]
        assert verdicts(judge, other, tmp_path / "cache.jsonl").facts["requests_hash"] != found.facts["requests_hash"]
    assert verdicts(judge, REQUESTS, tmp_path / "cache.jsonl") == found  # also when the endpoint is gone


def test_busy_broken_and_late_answers_are_asked_again(tmp_path: Path) -> None:
    first = {"text 0": (429, b"{}"), "text 1": (500, b"broken"), "text 2": (503, b""), "text 3": (200, None)}

    def rule(text: str, before: int) -> tuple[int, bytes | None]:
        return first[text] if text in first and before == 0 else said("Rating: 3")

    with served(rule, timeout=0.5) as (server, judge):
        found = verdicts(judge, REQUESTS, tmp_path / "cache.jsonl")
    assert set(found.values()) == {"Rating: 3"} and server.seen["text 4"] == 1
    assert all(server.seen[text] >= 2 for text in first)


@pytest.mark.parametrize(
    "answer", [(429, b"{}"), (500, b""), (200, b"no JSON"), (200, b"{}"), (200, b'{"choices": []}')]
)
def test_what_was_answered_is_kept_when_the_others_fail(answer: tuple[int, bytes], tmp_path: Path) -> None:
    broken = True
    with served(lambda text, _: answer if broken and text[-1] in "13" else said("yes"), max_retries=1) as (
        server,
        judge,
    ):
        with pytest.raises(EndpointError, match=r"needs a verdict for each of 5 answers, 2 failed \(request '1'"):
            verdicts(judge, REQUESTS, tmp_path / "cache.jsonl")
        broken, asked = False, Counter(server.seen)
        assert set(verdicts(judge, REQUESTS, tmp_path / "cache.jsonl").values()) == {"yes"}
        assert server.seen - asked == {"text 1": 1, "text 3": 1}


def test_a_judge_that_is_not_there_is_an_error_before_the_model_runs(tmp_path: Path) -> None:
    with served(lambda *_: (404, b"{}")) as (_, judge), pytest.raises(EndpointError, match="judge"):
        evaluate(None, None, scenes(tmp_path / "images", judged=True), output_dir=tmp_path / "out", judge=judge)
    with pytest.raises(EndpointError, match="Connection error"):
        evaluate(None, None, scenes(tmp_path / "images", judged=True), output_dir=tmp_path / "out", judge=judge)


def test_a_run_keeps_verdicts_and_says_who_judged(tmp_path: Path) -> None:
    benchmark = scenes(tmp_path / "images", 2, judged=True)
    with served(lambda text, _: said("right" if "Yes" in text else "<think>right?</think> wrong")) as (server, judge):
        result = evaluate(*loaded(), benchmark, output_dir=tmp_path / "out", judge=judge, progress=False)
        images = [len(body["messages"][0]["content"]) for body in server.bodies[1:]]
        again = evaluate(*loaded(), benchmark, output_dir=tmp_path / "out", judge=judge, progress=False)
        assert len(server.bodies) == 9 and again.metrics == result.metrics
    assert images == [2] * 8  # the image and the text
    stored = json.loads((result.folder / "results.json").read_text())["judge"]
    assert stored["name"] == "judge" and len(stored["requests_hash"]) == 32
    rows = read_jsonl(result.folder / "verdicts.jsonl")
    assert len(rows) == 8 and {row["verdict"] for row in rows} == {"right", "<think>right?</think> wrong"}


def test_another_image_or_judge_is_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def function(requests: Any) -> list[str]:
        asked.extend(request.id for request in requests)
        return ["yes"] * len(requests)

    for seed in (0, 1, 1):
        picture(seed).save(tmp_path / "x.png")
        request = JudgeRequest(f"seed {seed}", "text", tmp_path / "x.png")
        verdicts(FunctionJudge(function), [request], tmp_path / "cache.jsonl")
    verdicts(FunctionJudge(function, "other"), [request], tmp_path / "cache.jsonl")
    assert asked == ["seed 0", "seed 1", "seed 1"]


def test_settings_of_a_request_are_sent_and_tell_judges_apart(tmp_path: Path) -> None:
    with served(lambda *_: said("yes")) as (server, _):
        for settings in ({"temperature": 0}, {"temperature": 1}, {"temperature": 0}):
            judge = as_judge(ChatEndpoint(server.url, "judge", settings))
            found = verdicts(judge, REQUESTS[:1], tmp_path / "cache.jsonl")
    assert [body["temperature"] for body in server.bodies] == [0, 1]
    assert found.facts["name"] == "judge (temperature=0)"


def test_what_a_function_answers_is_checked(tmp_path: Path) -> None:
    for answer in ("yes", ["yes"], None):
        with pytest.raises(TypeError, match="judge: needs a list of 5 texts from"):
            verdicts(FunctionJudge(lambda _, answer=answer: answer), REQUESTS, tmp_path / "cache.jsonl")
    assert as_judge(print).name == "builtins.print"


def test_a_judge_may_think_aloud() -> None:
    assert rating("<think>Maybe Rating: 2?</think>It is all there. Rating: 5") == 5


def test_a_model_in_memory_judges(tmp_path: Path) -> None:
    benchmark = scenes(tmp_path / "images", 2)
    judge = ModelJudge(*loaded(), max_new_tokens=12)
    seen = JudgeRequest("a", benchmark.rows[0][2], benchmark.rows[0][1])
    result = evaluate(*loaded(), benchmark, output_dir=tmp_path / "out", progress=False)
    answer = read_jsonl(result.folder / "answers.jsonl")[0]["answer"]
    found = verdicts(judge, [seen, JudgeRequest("b", "Is there a cat in the image?")], tmp_path / "cache.jsonl")
    assert found["a"] == answer and found["b"]
