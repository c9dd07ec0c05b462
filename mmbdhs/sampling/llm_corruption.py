"""Rejected responses written by a language model (appendix C.1), and the OpenAI-compatible endpoint it runs on."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from mmbdhs.checks import check_on_error, equal_lengths, given
from mmbdhs.data import ChatPrompt, Prompt, as_messages, load_images, message_text
from mmbdhs.errors import ExampleError
from mmbdhs.sampling.answer_file import AnswerFile

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger("mmbdhs")
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

CORRUPTION = """\
Here are a question about an image and a good response to it. Rewrite the response so that it says a few false things \
about the image: change or add objects, attributes, numbers, places, actions or relations. Every false claim must be \
realistic. Someone who cannot see the image must find it plausible and be unable to tell it from the true ones. Keep \
style, structure and length, keep word for word what you do not change, do not contradict yourself, and give no hint \
that anything was changed.

Question: {question}

Response: {response}

Write the rewritten response and nothing else."""
_REMINDER = "\n\nAt least one claim must change: do not repeat the response as it is."


class EndpointError(RuntimeError):
    """The endpoint failed or gave no usable answer."""


class ChatEndpoint:
    """A model at an OpenAI-compatible endpoint.

    client: an `openai.OpenAI`, whose own `max_retries` and `timeout` apply, or a base URL. For an https URL a client is
        made with the key in the environment variable OPENAI_API_KEY, if it is set. Over http the key would be readable
        on the way, so it is not sent; pass a client to send one.
    model_name: the model's name at the endpoint.
    settings: further arguments of each request, such as temperature.
    answers: a JSONL file that keeps every answer as it comes. A request that is in it already is not sent again, so
        what was paid for survives an interruption.

    Raises ImportError where the package openai is missing.
    """

    def __init__(
        self,
        client: Any,
        model_name: str,
        settings: Mapping[str, Any] | None = None,
        answers: str | os.PathLike[str] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError("client: needs the package openai, pip install 'mmbdhs[annotate]'") from error
        if isinstance(client, str):
            key = os.environ.get("OPENAI_API_KEY", "none") if client.lower().startswith("https://") else "none"
            client = openai.OpenAI(base_url=client, api_key=key)
        self._client = client
        self._errors = openai.OpenAIError, JSONDecodeError  # which the client lets through
        self._answers = AnswerFile(answers) if answers is not None else None
        self.model_name, self.settings = model_name, dict(settings or {})

    def ask(self, text: str, images: Sequence[Image] = ()) -> str:
        """Send one user message, images first, and return the answer. Raises EndpointError if there is none."""
        content = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
        message = {"role": "user", "content": [*content, {"type": "text", "text": text}] if content else text}
        request = {"model": self.model_name, "messages": [message], **self.settings}
        if self._answers is None:
            return self._answer(request)
        return self._answers.answer(request, self._answer)

    def _answer(self, request: dict[str, Any]) -> str:
        try:
            completion = self._client.chat.completions.create(**request)
        except self._errors as error:
            raise EndpointError(f"{self.model_name}: {error}") from error
        choices = getattr(completion, "choices", None)  # the server of a wrong address may send anything
        if not choices or not choices[0].message.content:
            raise EndpointError(f"{self.model_name}: needs an answer with text, got {str(completion)[:200]!r}")
        return choices[0].message.content


def data_url(image: Image) -> str:
    """Encode an image as a data URL that contains a PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def ask_each(
    task: Callable[[_Item], _Answer], items: Mapping[str, _Item], workers: int | None, on_error: str
) -> list[_Answer | EndpointError | ExampleError]:
    """Run task(item) for all items and return the answers in the items' order.

    task: may raise EndpointError, or ExampleError where the item itself cannot be used. Any other error is raised.
    items: by the names that error messages use.
    workers: number of threads. None: the caller's own thread.
    on_error: "raise" the first of these errors, with the item's name, or "skip" the item: its error is returned in
        place of an answer.
    """

    def attempt(name: str, item: _Item) -> _Answer | EndpointError | ExampleError:
        try:
            return task(item)
        except (EndpointError, ExampleError) as error:
            named = type(error)(f"{name}: {error}")
            if on_error == "raise":
                raise named from error
            _LOG.warning("skipped %s", named)
            return named

    if workers is None:
        return [attempt(name, item) for name, item in items.items()]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(attempt, items, items.values()))  # an error cancels the items that have not started


def conversation_text(prompt: Prompt, image_count: int | None = None) -> str:
    """The text of a prompt: that of its only message, or of all turns with their roles.

    prompt: as `bdhs_sample` takes it.
    image_count: number of the prompt's images. None: as many as the prompt has placeholders.

    Raises ExampleError for a prompt that `as_messages` refuses.
    """
    messages = as_messages(prompt, _placeholder_count(prompt) if image_count is None else image_count)
    turns = [(message["role"].capitalize(), message_text(message)) for message in messages]
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)


def _placeholder_count(prompt: Any) -> int:
    """The number of image parts in a prompt that may be malformed."""
    messages = prompt.messages if isinstance(prompt, ChatPrompt) else prompt
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def corrupt_responses(
    client: Any,
    model_name: str,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    images: Sequence[Any] | None = None,
    *,
    instruction: str = CORRUPTION,
    settings: Mapping[str, Any] | None = None,
    workers: int = 8,
    on_error: str = "raise",
    answers: str | os.PathLike[str] | None = None,
) -> list[str | None]:
    """Make rejected responses by the corruption strategy (C.1): a strong language model rewrites each response with
    hallucinations that only the image disproves.

    client, model_name, settings, answers: as `ChatEndpoint` takes them.
    prompts: the prompt of each response.
    responses: the chosen responses.
    images: for each prompt an image or a list of images that the model sees, or None, as for all prompts: it works
        from the text.
    instruction: contains {question} and {response}.
    workers: number of requests at a time.
    on_error: "raise" an error that names the row, or "skip" the row and return None for it: an EndpointError, also
        where a response comes back unchanged twice, or an ExampleError for an image or prompt that cannot be used.
    """
    check_on_error(on_error)
    equal_lengths(prompts=prompts, responses=responses, **given(images=images))
    endpoint = ChatEndpoint(client, model_name, settings, answers)

    def rewrite(item: tuple[Prompt, str, Any]) -> str:
        prompt, response, image = item
        pictures = [] if image is None else load_images(image)
        question = conversation_text(prompt, None if image is None else len(pictures))
        text = instruction.format(question=question, response=response)
        for request in (text, text + _REMINDER):
            answer = endpoint.ask(request, pictures).strip()
            if answer.split() != response.split():
                return answer
        raise EndpointError(f"{model_name}: needs a response that differs, got the same twice")

    items = zip(prompts, responses, [None] * len(prompts) if images is None else images, strict=True)
    rows = {f"row {number}": item for number, item in enumerate(items)}
    found = ask_each(rewrite, rows, workers, on_error)
    return [None if isinstance(answer, Exception) else answer for answer in found]
