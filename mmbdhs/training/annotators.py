"""Annotators for Online-DPO (appendix D): they judge which of two responses is better."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from mmbdhs.checks import check_on_error
from mmbdhs.data import Images, Prompt, load_images
from mmbdhs.logprobs import encode_responses, reference_logps
from mmbdhs.sampling import ChatEndpoint, ask_each, conversation_text
from mmbdhs.vlm import VLM, Processor, tokenizer_of


class Comparison(NamedTuple):
    """Two responses to one prompt.

    key: names the comparison in error messages.
    images, prompt: as `bdhs_sample` takes them.
    first, second: the responses.
    """

    key: int | str
    images: Images
    prompt: Prompt
    first: str
    second: str


Annotator = Callable[[Sequence[Comparison]], list[int | None]]
"""Any callable that returns, for each comparison, 0 or 1 for the better response or None if it is undecided.

An annotator may have the attribute `symmetric`: True if the order of the two responses does not change its verdict.
`annotator_accuracy` then asks it once about each pair."""

INSTRUCTION = """\
You see an image, a question about it and two responses. Judge which response is better. What counts first is whether \
a response is true to the image: objects, attributes, numbers or relations that the image does not show make it worse. \
Between responses that are equally true, the one that answers the question more helpfully is better. A concise answer \
is a helpful one: more words alone do not make a response better. It is good if a response says nothing about what \
cannot be seen in the image. The order of the responses does not count.

Question: {question}

Response 1: {first}

Response 2: {second}

Which response is better? Answer "Response 1" or "Response 2" and nothing else."""

# The tags of thoughts: <think>, ◁think▷ or [THINK], as reasoning models write them.
_WORD = "think|thinking|thought|reasoning|reflection"
_THOUGHTS = re.compile(rf"<({_WORD})>.*?</\1>|◁think▷.*?◁/think▷|\[think\].*?\[/think\]", re.IGNORECASE | re.DOTALL)
_OPENING = re.compile(rf"<(?:{_WORD})>|◁think▷|\[think\]", re.IGNORECASE)
_CLOSING = re.compile(rf"</(?:{_WORD})>|◁/think▷|\[/think\]", re.IGNORECASE)
_EMPHASIS, _QUOTES = re.compile(r"[*_`#()\[\]]"), re.compile(r"[\"'“”‘’]")
_VERDICT = re.compile(
    r"\s*(?:(?:final\s+)?(?:answer|verdict)\s*:|the\s+better\s+response\s+is\b\s*:?)?"
    r"\s*(?:response\s+)?([12])(?:\s+is\s+better)?[\s.!:,;]*",
    re.IGNORECASE,
)


def parse_verdict(text: str) -> int | None:
    """The response that a judge names: 0 for "Response 1" or "1", 1 for "Response 2" or "2", None for anything else.

    Thoughts between tags such as <think> and </think> do not count; a template may have written the opening tag, and
    without the closing one there is no answer yet. The rest or its last line has to be the name, after "Answer:",
    "Final answer:", "Verdict:" or "The better response is" if need be, or before "is better". Case, markup, white space
    and final punctuation do not count. Quotation marks around the whole answer do not count either, but a last line in
    quotation marks is a quotation, not a verdict.
    """
    answer = _CLOSING.split(_THOUGHTS.sub("", text))[-1]
    if _OPENING.search(answer):
        return None
    answer = _EMPHASIS.sub("", answer)
    last_line = answer.strip().rpartition("\n")[2]
    verdict = _VERDICT.fullmatch(_QUOTES.sub("", answer)) or _VERDICT.fullmatch(last_line)
    return int(verdict[1]) - 1 if verdict else None


class _Annotator:
    """What annotators have in common: they count, and skip or name a comparison that cannot be judged.

    failed: number of skipped comparisons so far.
    undecided: number of comparisons so far that were judged without a verdict.
    """

    symmetric: ClassVar[bool] = True

    def __init__(self, on_error: str) -> None:
        check_on_error(on_error)
        self._on_error = on_error
        self.failed = self.undecided = 0

    def _verdicts(
        self,
        judge: Callable[[Comparison], int | None],
        comparisons: Sequence[Comparison],
        workers: int | None = None,
    ) -> list[int | None]:
        named = {f"comparison {number} ({c.key!r})": c for number, c in enumerate(comparisons)}
        answers = ask_each(judge, named, workers, self._on_error)
        verdicts = [None if isinstance(answer, Exception) else answer for answer in answers]
        failed = sum(isinstance(answer, Exception) for answer in answers)
        self.failed += failed
        self.undecided += verdicts.count(None) - failed
        return verdicts


class _Judge(_Annotator):
    """A judge that is asked in both orders. The verdicts must agree, so a preference for one position has no effect."""

    def __init__(self, instruction: str, on_error: str) -> None:
        super().__init__(on_error)
        fields = {name for _, name, _, _ in Formatter().parse(instruction) if name is not None}
        if fields != {"question", "first", "second"}:
            raise ValueError(f"instruction: needs the fields question, first and second, got {sorted(fields)}")
        self._instruction = instruction

    def _agreed(self, ask: Callable[[str, list[Any]], str], comparison: Comparison) -> int | None:
        images = load_images(comparison.images)
        question = conversation_text(comparison.prompt, len(images))
        pair = (comparison.first, comparison.second)
        forward, backward = (
            parse_verdict(ask(self._instruction.format(question=question, first=first, second=second), images))
            for first, second in (pair, pair[::-1])
        )
        return forward if {forward, backward} == {0, 1} else None


class ModelAnnotator(_Judge):
    """A vision-language model of `transformers` as the judge. It decodes greedily and is asked in both orders.

    model, processor: as `bdhs_sample` takes them; the policy may judge itself (self-annotation).
    instruction: contains {question}, {first} and {second}, and asks for "Response 1" or "Response 2".
    max_new_tokens: longest answer in tokens.
    on_error: "raise" an ExampleError that names the key of a comparison that cannot be read, or "skip" the comparison:
        its verdict is None.

    `undecided` counts the comparisons in which the model named no response, or contradicted itself in the other order,
    `failed` those that were skipped. Raises ValueError for an instruction without these fields.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Processor,
        *,
        instruction: str = INSTRUCTION,
        max_new_tokens: int = 64,
        on_error: str = "raise",
    ) -> None:
        super().__init__(instruction, on_error)
        self._model, self._processor, self._max_new_tokens = model, processor, max_new_tokens

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        with VLM.of(self._model).evaluation_mode(), torch.no_grad():
            return self._verdicts(lambda comparison: self._agreed(self._answer, comparison), comparisons)

    def _answer(self, text: str, images: list[Any]) -> str:
        vlm = VLM.of(self._model)
        model: Any = vlm.model
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        ).to(vlm.device, vlm.dtype)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=self._max_new_tokens)
        return tokenizer_of(self._processor).decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class LikelihoodAnnotator(_Annotator):
    """Self-annotation by likelihood: the response with the higher log-probability per token under the model is better.

    It serves models that are too small to follow the instructions of a judge. It knows no more than the model does, and
    prefers what the model would say anyway.

    model, processor: as `bdhs_sample` takes them.
    margin: nats per token by which the two responses must differ; below it a comparison is undecided.
    on_error: as `ModelAnnotator` takes it.

    `undecided` counts the undecided comparisons, `failed` the skipped ones. Raises ValueError for a negative margin.
    """

    def __init__(self, model: nn.Module, processor: Processor, *, margin: float = 0.0, on_error: str = "raise") -> None:
        super().__init__(on_error)
        if not margin >= 0:
            raise ValueError(f"margin: needs a number of nats from 0, got {margin!r}")
        self._model, self._processor, self._margin = model, processor, margin

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        return self._verdicts(self._verdict, comparisons)

    def _verdict(self, comparison: Comparison) -> int | None:
        texts = [comparison.first, comparison.second]
        inputs, ids = encode_responses(self._model, self._processor, comparison.images, comparison.prompt, texts)
        found = reference_logps(self._model, [inputs], [ids], self._model)
        first, second = (found.sums / found.lengths)[0].tolist()
        return int(second > first) if abs(first - second) > self._margin else None


class EndpointAnnotator(_Judge):
    """A model at an OpenAI-compatible endpoint as the judge. It is asked in both orders; images are sent as PNG.

    client, model_name, answers: as `ChatEndpoint` takes them.
    instruction: as `ModelAnnotator` takes it.
    settings: as `ChatEndpoint` takes them; None: {"temperature": 0}.
    workers: number of comparisons at a time.
    on_error: "raise" an EndpointError, or an ExampleError for a comparison that cannot be read, that names the
        comparison's key, or "skip" the comparison: its verdict is None.

    `failed` counts the skipped comparisons, `undecided` those that were answered without an agreed verdict.
    Raises ValueError for an instruction without its fields, and ImportError where the package openai is missing.
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
        answers: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(instruction, on_error)
        self._endpoint = ChatEndpoint(client, model_name, {"temperature": 0} if settings is None else settings, answers)
        self._workers = workers

    def __call__(self, comparisons: Sequence[Comparison]) -> list[int | None]:
        return self._verdicts(lambda c: self._agreed(self._endpoint.ask, c), comparisons, self._workers)
