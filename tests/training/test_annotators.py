"""Annotators: judges that are asked in both orders, endpoints that fail."""

from __future__ import annotations

import base64
import copy
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import masked_logits, picture, prompt_inputs
from PIL import Image

from mmbdhs import ChatPrompt, miniature
from mmbdhs.errors import ExampleError
from mmbdhs.sampling.llm_corruption import ChatEndpoint, EndpointError, corrupt_responses
from mmbdhs.training import annotator_accuracy
from mmbdhs.training.annotators import Comparison, EndpointAnnotator, LikelihoodAnnotator, ModelAnnotator

openai = pytest.importorskip("openai")


def comparison(key: int | str = 0, first: str = "A dog.", second: str = "A cat.") -> Comparison:
    return Comparison(key, [picture(0, 12, 8)], "What is it?", first, second)


class Endpoint:
    """An OpenAI-compatible server in this process. `answer` returns a text or an HTTP status for a request's body."""

    def __init__(self) -> None:
        self.answer: Callable[[dict], str | int] = lambda body: "Response 1"
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.authorizations.append(self.headers["Authorization"])
                answer = outer.answer(body)
                content = json.dumps(_completion(answer) if isinstance(answer, str) else {}).encode()
                self.send_response(200 if isinstance(answer, str) else answer)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def client(self, **settings: Any) -> Any:
        return openai.OpenAI(base_url=self.url, api_key="none", **settings)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def _completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }


def text_of(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def prefers_cats(body: dict[str, Any]) -> str:
    return "Response 1" if "Response 1: A cat" in text_of(body) else "Response 2"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


def test_a_request_holds_the_image_the_question_and_each_order(endpoint: Endpoint) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it big?"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "What is it, {then}?"},
    ]
    judge = EndpointAnnotator(endpoint.url, "judge", settings={"max_tokens": 9})
    assert judge([comparison()._replace(prompt=messages)]) == [None]
    first, second = endpoint.bodies
    assert (first["model"], first["max_tokens"], first["messages"][0]["role"]) == ("judge", 9, "user")
    image, text = first["messages"][0]["content"]
    scheme, data = image["image_url"]["url"].split(",")
    assert (image["type"], text["type"], scheme) == ("image_url", "text", "data:image/png;base64")
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == picture(0, 12, 8).tobytes()
    assert "Question: User: Is it big?\nAssistant: Yes.\nUser: What is it, {then}?\n" in text["text"]
    assert "Response 1: A dog.\n\nResponse 2: A cat.\n" in text["text"]
    assert "Response 1: A cat.\n\nResponse 2: A dog.\n" in text_of(second)
    assert "A concise answer is a helpful one" in text["text"]
    assert "It is good if a response says nothing about what cannot be seen in the image." in text["text"]


def test_a_consistent_judge_ranks_and_a_biased_one_does_not(endpoint: Endpoint) -> None:
    comparisons = [comparison(n, *pair) for n, pair in enumerate([("A dog.", "A cat."), ("A cat.", "A dog.")] * 8)]
    consistent = EndpointAnnotator(endpoint.client(), "judge", workers=4)
    endpoint.answer = prefers_cats
    assert consistent(comparisons) == [1, 0] * 8
    assert consistent.undecided == 0
    assert {body["temperature"] for body in endpoint.bodies} == {0}
    biased = EndpointAnnotator(endpoint.client(), "judge")
    endpoint.answer = lambda body: "Response 2"
    assert biased(comparisons) == [None] * 16
    assert (biased.undecided, biased.failed) == (16, 0)


def test_the_key_of_the_environment_is_not_sent_in_clear(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    for url in (endpoint.url, endpoint.url.replace("http", "HTTP")):
        EndpointAnnotator(url, "judge")([comparison()])
    assert "SECRET" not in str(endpoint.authorizations)
    asked = openai.OpenAI(base_url=endpoint.url)  # the user's own client, which reads the variable
    EndpointAnnotator(asked, "judge")([comparison()])
    assert endpoint.authorizations[-1] == "Bearer sk-SECRET"
    assert ChatEndpoint("https://example.org/v1", "judge")._client.api_key == "sk-SECRET"


def test_answers_on_disk_are_not_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    """Nor is any of them lost when one comparison fails, or when the last line was cut short."""
    file = tmp_path / "new/answers.jsonl"
    endpoint.answer = lambda body: 400 if "A bird" in text_of(body) else prefers_cats(body)
    comparisons = [comparison("a"), comparison("b", "A cow."), comparison("c", second="A bird.")]
    with pytest.raises(EndpointError, match="comparison 2"):
        EndpointAnnotator(endpoint.client(), "judge", workers=1, answers=file)(comparisons)
    assert len(endpoint.bodies) == 5 and len(file.read_text().splitlines()) == 4
    file.write_text(file.read_text()[:-10])
    endpoint.answer = prefers_cats
    judge = EndpointAnnotator(endpoint.client(), "judge", workers=4, answers=file)
    assert judge(comparisons) == [1, 1, None]
    assert len(endpoint.bodies) == 5 + 3  # the answer that was cut short, and the two that failed
    assert judge(comparisons) == [1, 1, None] and len(endpoint.bodies) == 8
    other = EndpointAnnotator(endpoint.client(), "judge", settings={"temperature": 1}, answers=file)
    assert other(comparisons[:1]) == [1] and len(endpoint.bodies) == 10
    again = EndpointAnnotator(endpoint.client(), "judge", answers=file)
    assert again(comparisons) == [1, 1, None] and len(endpoint.bodies) == 10


def test_the_client_retries(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: 500 if len(endpoint.bodies) < 3 else prefers_cats(body)
    assert EndpointAnnotator(endpoint.client(max_retries=2), "judge")([comparison()]) == [1]
    assert len(endpoint.bodies) == 4


def test_a_failure_names_its_comparison_or_is_skipped(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: 400 if "A bird" in text_of(body) else prefers_cats(body)
    comparisons = [comparison("a"), comparison("b", second="A bird."), comparison("c")]
    with pytest.raises(EndpointError, match=r"comparison 1 \('b'\): judge: Error code: 400"):
        EndpointAnnotator(endpoint.client(), "judge")(comparisons)
    skipping = EndpointAnnotator(endpoint.client(), "judge", on_error="skip")
    assert skipping(comparisons) == [1, None, 1]
    assert (skipping.failed, skipping.undecided) == (1, 0)
    with pytest.raises(ValueError, match="on_error: needs 'raise' or 'skip', got 'ignore'"):
        EndpointAnnotator(endpoint.client(), "judge", on_error="ignore")


UNREADABLE = [
    comparison("b")._replace(images=["/gone.png"]),
    comparison("b")._replace(prompt=3),
    comparison("b")._replace(prompt=[{"role": "user", "content": [{"type": "image"}, {"type": "text"}]}]),
    comparison("b")._replace(prompt=[{"role": "user", "content": "No image."}]),
    comparison("b")._replace(prompt=ChatPrompt([{"content": "No role."}])),
]


@pytest.mark.parametrize("bad", UNREADABLE)
def test_a_comparison_that_cannot_be_read_is_named_or_skipped(bad: Comparison, endpoint: Endpoint) -> None:
    endpoint.answer = prefers_cats
    model = saying(lambda text: "Response 1" if "Response 1: A cat" in text else "Response 2")
    for judge in (
        partial(EndpointAnnotator, endpoint.client(), "judge"),
        partial(ModelAnnotator, *model),
        partial(LikelihoodAnnotator, *miniature.load()),
    ):
        with pytest.raises(ExampleError, match=r"comparison 1 \('b'\): (images|prompts): needs"):
            judge()([comparison("a"), bad])
        skipping: Any = judge(on_error="skip")
        first, none, third = skipping([comparison("a"), bad, comparison("c", "A cat.", "A dog.")])
        assert (none, first + third) == (None, 1)
        assert (skipping.failed, skipping.undecided) == (1, 0)
        with pytest.raises(ValueError, match="on_error: needs 'raise' or 'skip', got 'ignore'"):
            judge(on_error="ignore")


def test_a_row_that_cannot_be_read_is_named_or_skipped(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: "A red dog."
    for bad in UNREADABLE:
        rows = (["What is it?", bad.prompt], ["A dog."] * 2, [picture(0), bad.images])
        with pytest.raises(ExampleError, match=r"row 1: (images|prompts): needs"):
            corrupt_responses(endpoint.client(), "writer", *rows)
        assert corrupt_responses(endpoint.client(), "writer", *rows, on_error="skip") == ["A red dog.", None]


def test_a_fault_of_our_own_is_not_skipped(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr("mmbdhs.training.annotators.load_images", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        EndpointAnnotator(endpoint.client(), "judge", on_error="skip")([comparison()])


def test_text_is_corrupted_without_the_images_of_its_prompt(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: "A red dog."
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompts = [[{"role": "user", "content": content}], ChatPrompt("And this?")]
    assert corrupt_responses(endpoint.client(), "writer", prompts, ["A dog."] * 2) == ["A red dog."] * 2
    asked = sorted(line for body in endpoint.bodies for line in text_of(body).splitlines() if "Question" in line)
    assert asked == ["Question: And this?", "Question: What is it?"]


def test_an_endpoint_that_does_not_answer(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: str(endpoint.released.wait())
    slow = EndpointAnnotator(endpoint.client(timeout=0.2, max_retries=0), "judge")
    with pytest.raises(EndpointError, match=r"comparison 0 \('x'\): judge: Request timed out"):
        slow([comparison("x")])
    endpoint.answer = lambda body: ""
    with pytest.raises(EndpointError, match="judge: needs an answer with text, got"):
        EndpointAnnotator(endpoint.client(), "judge")([comparison("x")])


def test_after_a_failure_no_more_is_asked(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: 400 if len(endpoint.bodies) == 1 else str(endpoint.released.wait())
    judge = EndpointAnnotator(endpoint.client(timeout=0.2, max_retries=0), "judge", workers=1)
    with pytest.raises(EndpointError, match="comparison 0"):
        judge([comparison(n) for n in range(20)])
    assert len(endpoint.bodies) < 20


def test_corrupted_responses_differ(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: " A red dog runs. " if "do not repeat" in text_of(body) else "A  dog runs."
    prompts, responses = ["What is it?", "And this?"], ["A dog runs.", "Two cats."]
    found = corrupt_responses(endpoint.client(), "writer", prompts, responses, [picture(0), [picture(1), picture(2)]])
    assert found == ["A red dog runs.", "A  dog runs."]
    assert sorted(len(body["messages"][0]["content"]) for body in endpoint.bodies) == [2, 2, 3]
    assert not any("temperature" in body for body in endpoint.bodies)
    endpoint.bodies.clear()
    endpoint.answer = lambda body: "Two cats."
    assert corrupt_responses(endpoint.url, "writer", prompts, responses, on_error="skip") == ["Two cats.", None]
    assert all(isinstance(body["messages"][0]["content"], str) for body in endpoint.bodies)
    with pytest.raises(EndpointError, match="row 1: writer: needs a response that differs, got the same twice"):
        corrupt_responses(endpoint.url, "writer", prompts, responses)
    with pytest.raises(ValueError, match=r"need lists of equal length, got .*'responses': 1"):
        corrupt_responses(endpoint.url, "writer", prompts, responses[:1])


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"needs the package openai, pip install 'mmbdhs\[annotate\]'"):
        EndpointAnnotator("http://127.0.0.1/v1", "judge")


def test_an_instruction_without_its_fields_is_refused() -> None:
    with pytest.raises(ValueError, match=r"instruction: needs the fields .* got \['first'\]"):
        ModelAnnotator(None, None, instruction="Is this good? {first}")


def saying(answer: Callable[[str], str]) -> tuple[Any, Any]:
    """The miniature with a replaced `generate`, whose text is `answer` of the prompt."""
    model, processor = miniature.load()

    def generate(input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        assert not model.training and inputs["pixel_values"].dtype == model.dtype and inputs["do_sample"] is False
        text = answer(processor.tokenizer.decode(input_ids[0], skip_special_tokens=True))
        added = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, added], dim=1)

    model.generate = generate
    return model.train(), processor


def test_a_model_judges_in_both_orders() -> None:
    texts = []

    def truthful(text: str) -> str:
        texts.append(text)
        return "**Response 1**" if "Response 1: A cat" in text else "Response 2."

    model, processor = saying(truthful)
    judge = ModelAnnotator(model, processor)
    assert judge([comparison(), comparison(1, "A cat.", "A dog.")]) == [1, 0]
    assert len(texts) == 4 and all("Question: What is it?" in text for text in texts)
    assert model.training and judge.undecided == 0
    biased = ModelAnnotator(*saying(lambda text: "Response 1"))
    assert biased([comparison(), comparison(1)]) == [None, None]
    assert biased.undecided == 2


def test_a_model_that_cannot_follow_instructions_decides_nothing() -> None:
    judge = ModelAnnotator(*miniature.load(), max_new_tokens=4)
    assert judge([comparison()]) == [None]
    assert judge.undecided == 1


def test_likelihood_prefers_what_the_model_would_say() -> None:
    model, processor = copy.deepcopy(tiny_models.llava())
    texts = ["A red car stands here.", "A dog, and no car."]
    inputs = prompt_inputs(processor, [picture(0)], "What is it?")
    visible = tuple(range(int((inputs["input_ids"] == model.config.image_token_id).sum())))
    means = []
    for text in texts:
        ids = processor.tokenizer(f" {text}</s>", add_special_tokens=False)["input_ids"]
        logits = masked_logits(model, inputs, visible, ids)[: len(ids)]
        means.append(float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean()))
    better = int(means[1] > means[0])
    both = [Comparison(n, [picture(0)], "What is it?", *pair) for n, pair in enumerate([texts, texts[::-1]])]
    model.train()
    assert LikelihoodAnnotator(model, processor)(both) == [better, 1 - better]
    assert model.training
    gap = abs(means[0] - means[1])
    assert LikelihoodAnnotator(model, processor, margin=0.99 * gap)(both) == [better, 1 - better]
    cautious = LikelihoodAnnotator(model, processor, margin=1.01 * gap)
    assert cautious(both) == [None, None] and cautious.undecided == 2
    assert LikelihoodAnnotator(model, processor)([both[0]._replace(second=texts[0])]) == [None]
    with pytest.raises(ValueError, match="margin: needs a number of nats from 0, got -1"):
        LikelihoodAnnotator(model, processor, margin=-1)


def test_the_accuracy_of_each_annotator_on_pairs_with_a_known_better_response(endpoint: Endpoint) -> None:
    endpoint.answer = lambda body: 400 if "A bird" in text_of(body) else prefers_cats(body)
    texts = [("A cat.", "A dog."), ("A cat.", "A cow."), ("A dog.", "A cat."), ("A cat.", "A bird."), ("No.", "Yes.")]
    pairs = [{"images": [picture(0)], "prompt": "?", "chosen": good, "rejected": bad} for good, bad in texts]
    judge = EndpointAnnotator(endpoint.client(max_retries=0), "judge", workers=1, on_error="skip")
    for _ in range(2):  # the annotator counts all its comparisons, the accuracy those of its own call
        found = annotator_accuracy(judge, pairs)
        assert (found.right, found.wrong, found.undecided, found.failed) == (2, 1, 1, 1)
        assert (found.accuracy.value, found.accuracy.count, found.decided.value) == (pytest.approx(2 / 3), 3, 3 / 5)
    assert len(endpoint.bodies) == 2 * (2 * 4 + 1)  # each pair in both orders, and once where that failed
    biased = annotator_accuracy(ModelAnnotator(*saying(lambda text: "Response 1")), pairs)
    assert (biased.undecided, biased.decided.value) == (5, 0)
    likelihood = LikelihoodAnnotator(*miniature.load())
    verdicts = likelihood([Comparison(n, [picture(0)], "?", *pair) for n, pair in enumerate(texts)])
    found = annotator_accuracy(likelihood, pairs)
    assert (found.right, found.wrong) == (verdicts.count(0), verdicts.count(1)) and found.right + found.wrong == 5
