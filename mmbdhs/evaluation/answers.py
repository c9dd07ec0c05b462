"""Answers to questions about images. Questions about one image share its encoding, and the prompt up to where they
differ.

The chat prompts of these questions begin alike: the template's opening, the image, and often more. That part runs
once. The rest of each prompt is forced upon a branch of its own, which then goes on with the answer, so that the
questions of many images decode together.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

import torch
from torch import nn

from mmbdhs.data import as_messages, key_address, load_images
from mmbdhs.decoding import vision_token_ids
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.evaluation.benchmark import Question
from mmbdhs.evaluation.shared_prompts import SharedPrompts, may_share, naming, shared_prompts
from mmbdhs.sampling import (
    EncodedExample,
    ExampleReader,
    ReaderPool,
    ResponseBranch,
    SamplingConfig,
    Scheduler,
    Started,
    token_draws,
)
from mmbdhs.vlm import CONTEXT_TOKENS, VLM, Processor, encode_prompt, shared_processor, tokenizer_of

_LOG = logging.getLogger("mmbdhs")
_Texts = list[tuple[Question, list[int]]]  # each different question about an image, and the numbers of those who ask it
PLAIN_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""The arguments of `generate` for what greedy means here, whatever the model's generation config says."""


def by_image(questions: Iterable[Question]) -> list[Question]:
    """The questions image by image: images in the order of their first questions, each one's questions in theirs."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(str(question.image), []).append(question)
    return list(chain.from_iterable(groups.values()))


def iter_answers(
    model: nn.Module, processor: Processor, questions: Sequence[Question], config: SamplingConfig
) -> Iterator[str]:
    """Yield the answer to every question, in their order.

    model, processor: a VLM of `transformers` and its processor.
    questions: those that follow each other about one image are answered together, and the same text about it once.
    config: how tokens are drawn; temperature 0 for greedy answers.

    Greedy answers are those of `generate(do_sample=False)` without the processors of logits that the model's
    generation config may add, such as a repetition penalty, and without tokens that stand for images. A model that
    cannot decode over shared prefixes answers by `generate`, one question at a time, and the log says so. Raises
    ExampleError that names a question that cannot be asked, and UnsupportedModelError for a drawn answer of a model
    that cannot decode over shared prefixes.
    """
    vlm = VLM.of(model)
    vlm.require_whole_parameters()
    with vlm.held_in_evaluation_mode():
        try:
            answerer = _Answerer(vlm, shared_processor(processor), config, questions)
        except UnsupportedModelError as error:
            if config.temperature:
                raise
            _LOG.warning("questions are answered one at a time, by generate: %s", error)
            yield from (_generated(vlm, processor, question, config.max_new_tokens) for question in questions)
            return
        found: dict[int, str] = {}
        following = 0
        with closing(answerer.run()) as answers:
            for number, answer in answers:
                found[number] = answer
                while following in found:
                    yield found.pop(following)
                    following += 1


@dataclass(frozen=True, eq=False)
class _Job:
    """Questions about one image that are answered together.

    texts: the questions.
    prompts: theirs.
    branches: their answers, once they have started.
    """

    texts: _Texts
    prompts: SharedPrompts
    branches: list[ResponseBranch]

    @property
    def branch_count(self) -> int:
        return len(self.texts)


class _Answerer:
    """Raises UnsupportedModelError for a model that cannot decode over shared prefixes exactly."""

    def __init__(self, vlm: VLM, processor: Processor, config: SamplingConfig, questions: Sequence[Question]) -> None:
        self._vlm, self._processor, self._config = vlm, processor, config
        self._reader = ExampleReader(vlm, processor, config.max_new_tokens)
        self._scheduler: Scheduler[_Job] = Scheduler(vlm, processor, config)
        self._count, numbers = len(questions), range(len(questions))
        groups = groupby(numbers, key=lambda number: questions[number].image)
        self._groups = [_texts([(questions[number], number) for number in group]) for _, group in groups]
        self._shares = self._tried()

    def run(self) -> Generator[tuple[int, str]]:
        """Yield (number of the question, answer) as answers end."""
        ended = 0
        with ReaderPool(self._config.num_workers, self._vlm.device) as readers:
            source = chain.from_iterable(readers.map(self._read, self._groups))
            while ended < self._count:
                with self._vlm.evaluation_mode(), torch.no_grad():
                    jobs = self._scheduler.advance(lambda: next(source, None), self._start)
                for job, error in jobs:
                    if error is not None:
                        with naming(job.texts[0][0]):
                            raise error
                    for (_, numbers), branch in zip(job.texts, job.branches, strict=True):
                        yield from ((number, branch.text.strip()) for number in numbers)
                        ended += len(numbers)

    def _tried(self) -> bool:
        """Whether questions about one image may share a prompt, tried with the first that could."""
        if not self._groups:
            return False
        texts = next((group for group in self._groups if len(group) > 1), self._groups[0])
        prompts = self._prompts(texts)
        example = prompts or self._prompts(texts[:1])
        assert example is not None  # one question shares all of its prompt with itself
        with self._vlm.evaluation_mode(), torch.no_grad():
            (encoded,) = self._reader.encode([example.example])
        if isinstance(encoded, Exception):
            with naming(texts[0][0]):
                raise encoded
        if len(texts) == 1:
            return False
        obstacle = "their prompts may differ before the image ends" if prompts is None else None
        if prompts is not None and not may_share(self._vlm, encoded.inputs, prompts.shared):
            obstacle = f"{self._vlm.name} lets it see them"
        if obstacle or prompts is None:
            _LOG.warning("questions about one image do not share its prompt: %s", obstacle)
            return False
        whole = len(encoded.inputs)
        _LOG.info("questions about one image share its prompt: %d of %d tokens run once", prompts.shared, whole)
        return True

    def _prompts(self, texts: _Texts) -> SharedPrompts | None:
        return shared_prompts(self._vlm, self._reader, self._processor, [question for question, _ in texts])

    def _read(self, texts: _Texts) -> list[_Job]:
        """The questions of one image, together or each by itself. Runs in the readers' threads."""
        prompts = self._prompts(texts) if self._shares or len(texts) == 1 else None
        return [_Job(texts, prompts, [])] if prompts else [job for one in texts for job in self._read([one])]

    def _start(self, jobs: list[_Job]) -> list[Started | Exception]:
        encoded = self._reader.encode([job.prompts.example for job in jobs])
        return [
            one if isinstance(one, Exception) else self._started(job, one)
            for job, one in zip(jobs, encoded, strict=True)
        ]

    def _started(self, job: _Job, encoded: EncodedExample) -> Started:
        shared, limit = job.prompts.shared, self._config.max_new_tokens
        prefix = replace(encoded.inputs.select(torch.arange(shared)), prompt_length=shared)
        addresses = [key_address(question.id) for question, _ in job.texts]
        draws = token_draws(self._config, addresses, 1, [0] * len(addresses), limit)
        tail = job.prompts.example.inputs["input_ids"][0, :shared][-CONTEXT_TOKENS:].tolist()
        for suffix, uniforms in zip(job.prompts.suffixes, draws, strict=True):
            context = (*tail, *suffix)[-CONTEXT_TOKENS:]
            branch = ResponseBranch(shared, limit, suffix, uniforms=uniforms, context_ids=context)
            job.branches.append(branch)
        return prefix, job.branches


def _texts(asked: Iterable[tuple[Question, int]]) -> _Texts:
    """Each different question with the numbers of those who ask it."""
    found: dict[str, tuple[Question, list[int]]] = {}
    for question, number in asked:
        found.setdefault(question.text, (question, []))[1].append(number)
    return list(found.values())


@torch.no_grad()
def _generated(vlm: VLM, processor: Any, question: Question, limit: int) -> str:
    """The greedy answer by the model's own `generate`."""
    with naming(question):
        images = load_images(str(question.image))
        messages = as_messages(question.text, len(images))
        inputs = encode_prompt(processor, messages, images, vlm.device, vlm.dtype)
    tokenizer = tokenizer_of(processor)
    suppressed = vision_token_ids(vlm, tokenizer)
    model: Any = vlm.model
    ids = model.generate(**inputs, **PLAIN_GREEDY, max_new_tokens=limit, suppress_tokens=suppressed)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
