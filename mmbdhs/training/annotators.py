"""Which of two responses is better: annotators that rank pairs for Online-DPO (appendix D)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

import torch
from torch import nn

from mmbdhs.checks import check_on_error
from mmbdhs.data import Messages, load_images
from mmbdhs.logprobs import encode_responses, reference_logps
from mmbdhs.sampling import ChatEndpoint, EndpointError, ask_each, conversation_text
from mmbdhs.vlm import VLM, tokenizer_of


class Comparison(NamedTuple):
    """Two responses to one image prompt. images, prompt: as `bdhs_sample` takes them."""

    key: int | str
    images: list[Any]
    prompt: str | Messages
    first: str
    second: str


Annotator = Callable[[Sequence[Comparison]], list[int | None]]
"""For each comparison 0 if the first response is better, 1 if the second is, None if it is undecided."""

INSTRUCTION = """\
You see an image, a question about it and two responses. Judge which response is better. What counts first is whether \
a response is true to the image: objects, attributes, numbers or relations that the image does not show make it worse. \
Between responses that are equally true, the one that answers the question more helpfully is better. The order and \
the length of the responses do not count.

Question: {question}

Response 1: {first}

Response 2: {second}

Which response is better? Answer "Response 1" or "Response 2" and nothing else."""

_MARKUP = re.compile(r"[*_`#\"'“”‘’()\[\]]")
_ORDINAL = re.compile(r"\b(?:the )?(first|second) response\b|\bresponse (one|two)\b")
_DIGIT = {"first": "1", "one": "1", "second": "2", "two": "2"}
_NAME = r"response ([12])\b(?! or\b)"
_VERDICTS = re.compile(
    rf"{_NAME},?(?: (?:is|was|seems|the|a|overall|clearly|slightly|much|far|more))*"
    r" (?:better|best|preferable|preferred|superior|wins|winner|accurate|truthful|helpful)\b"
    rf"|\b(?<!not )(?:prefer|choose|pick|select) {_NAME}"
    r"|\b(?:better|best|preferred|winner|answer|verdict|choice|judge?ment)(?: \w+)?(?: is:?|:) ?"
    r"(?:response )?([12])\b(?! or\b)"
)
_SENTENCES = re.compile(r"(?:^|[.!?:] )response ([12])(?=$|[.!]| because\b)")


def parse_verdict(text: str) -> int | None:
    """The response that a judge's answer names as the better one: 0 for Response 1, 1 for Response 2, None for neither.

    Case and markup do not matter; "response two" and "the second response" are "Response 2". In this order, the last of
    its kind holds:
    1. a verdict: "Response 2 is better" (clearly, the best, preferred, more accurate …), "I prefer Response 2", "Better
       response: Response 2", "the answer is 2";
    2. a name that is a line or sentence of its own, or goes on with "because";
    3. a number that is the whole answer.
    All else decides nothing, and so does an answer with "neither" or "equally".
    """
    plain = ". ".join(" ".join(line.split()) for line in _MARKUP.sub("", text).lower().splitlines() if line.strip())
    plain = _ORDINAL.sub(lambda match: f"response {_DIGIT[match[1] or match[2]]}", plain)
    bare = plain.rstrip(" .!")
    whole = _DIGIT.get(bare, bare)
    if re.search(r"\b(?:neither|equally)\b", plain):
        return None
    found = ["".join(match) for match in _VERDICTS.findall(plain)] or _SENTENCES.findall(plain)
    found = found or [whole] * (whole in ("1", "2"))
    return int(found[-1]) - 1 if found else None


class _Judge:
    """Asks a judge in both orders, so that a leaning to one place decides nothing: the verdicts must agree.

    undecided: how many comparisons were so far.
    """

    def __init__(self, instruction: str) -> None:
        fields = {name for _, name, _, _ in Formatter().parse(instruction) if name is not None}
        if fields != {"question", "first", "second"}:
            raise ValueError(f"instruction: needs the fields question, first and second, got {sorted(fields)}")
        self._instruction = instruction
        self.undecided = 0

    def _agreed(self, ask: Callable[[str, list], str], comparison: Comparison) -> int | None:
        question, images = conversation_text(comparison.prompt), load_images(comparison.images)
        pair = (comparison.first, comparison.second)
        forward, backward = (
            parse_verdict(ask(self._instruction.format(question=question, first=first, second=second), images))
            for first, second in (pair, pair[::-1])
        )
        return forward if {forward, backward} == {0, 1} else None


class ModelAnnotator(_Judge):
    """A vision-language model of `transformers` as the judge, greedy, asked in both orders.

    model, processor: as `bdhs_sample` takes them; the policy itself may be one (self-annotation).
    instruction: holds {question}, {first} and {second}, and asks for "Response 1" or "Response 2".

    `undecided` counts the comparisons in which the model named no response, or another when asked in the other order.
    """

    def __init__(
        self, model: nn.Module, processor: Any, *, instruction: str = INSTRUCTION, max_new_tokens: int = 64
    ) -> None:
        super().__init__(instruction)
        self._model, self._processor, self._max_new_tokens = model, processor, max_new_tokens

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        with VLM.of(self._model).evaluation_mode(), torch.no_grad():
            verdicts = [self._agreed(self._answer, comparison) for comparison in comparisons]
        self.undecided += verdicts.count(None)
        return verdicts

    def _answer(self, text: str, images: list) -> str:
        vlm = VLM.of(self._model)
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        ).to(vlm.device, vlm.dtype)
        ids = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=self._max_new_tokens)
        return tokenizer_of(self._processor).decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class LikelihoodAnnotator:
    """Self-annotation by likelihood: the better response is the one with the higher log-probability per token under the
    model, given image and prompt. It needs no instructions to be followed, so it is for models too small to judge; it
    knows no more than the model does, and prefers what the model would say anyway.

    margin: nats per token by which the responses must differ, otherwise the comparison is undecided.
    """

    def __init__(self, model: nn.Module, processor: Any, *, margin: float = 0.0) -> None:
        if not margin >= 0:
            raise ValueError(f"margin: needs a number of nats from 0, got {margin!r}")
        self._model, self._processor, self._margin = model, processor, margin
        self.undecided = 0

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        verdicts = [self._verdict(comparison) for comparison in comparisons]
        self.undecided += verdicts.count(None)
        return verdicts

    def _verdict(self, comparison: Comparison) -> int | None:
        texts = [comparison.first, comparison.second]
        inputs, ids = encode_responses(self._model, self._processor, comparison.images, comparison.prompt, texts)
        found = reference_logps(self._model, [inputs], [ids], self._model)
        first, second = (found.sums / found.lengths)[0].tolist()
        return int(second > first) if abs(first - second) > self._margin else None


class EndpointAnnotator(_Judge):
    """A model behind an OpenAI-compatible endpoint as the judge, asked in both orders; images travel as PNG.

    client, model_name, settings: as ChatEndpoint takes them; settings are {"temperature": 0} unless given.
    instruction: as ModelAnnotator's.
    workers: comparisons at a time.
    on_error: "raise" an EndpointError that names the comparison's key, or "skip" the comparison: None, and counted in
        `failed`. `undecided` counts those that were answered without an agreed verdict.
    """

    def __init__(
        self,
        client: Any,
        model_name: str,
        *,
        instruction: str = INSTRUCTION,
        settings: Mapping[str, Any] | None = None,
        workers: int = 8,
        on_error: str = "raise",
    ) -> None:
        super().__init__(instruction)
        check_on_error(on_error)
        self._endpoint = ChatEndpoint(client, model_name, {"temperature": 0} if settings is None else settings)
        self._workers, self._on_error = workers, on_error
        self.failed = 0

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        named = {f"comparison {number} ({c.key!r})": c for number, c in enumerate(comparisons)}
        answers = ask_each(lambda c: self._agreed(self._endpoint.ask, c), named, self._workers, self._on_error)
        failed = sum(isinstance(answer, EndpointError) for answer in answers)
        verdicts = [None if isinstance(answer, EndpointError) else answer for answer in answers]
        self.failed += failed
        self.undecided += verdicts.count(None) - failed
        return verdicts
