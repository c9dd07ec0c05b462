"""Answers to questions about images. Questions about one image share its encoding, and the prompt up to where they
differ.

The chat prompts of these questions begin alike: the template's opening, the image, and often more. That part runs
once. The rest of each prompt is forced upon a branch of its own, which then goes on with the answer, so that the
questions of many images decode together.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby

import torch
from torch import nn

from mmbdhs.data import key_address, load_images
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.evaluation.benchmark import Question
from mmbdhs.evaluation.generation import generated
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
from mmbdhs.vlm import CONTEXT_TOKENS, VLM, Processor, shared_processor

_LOG = logging.getLogger("mmbdhs")
_Texts = list[tuple[Question, list[int]]]  # each different question about an image, and the numbers of those who ask it


def by_image(questions: Iterable[Question]) -> list[Question]:
    """The questions image by image: images in the order of their first questions, each one's questions in theirs."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(str(question.image), []).append(question)
    return list(chain.from_iterable(groups.values()))


class Answerer:
    """Answers questions with one model.

    model, processor: a VLM of `transformers` and its processor.
    config: how tokens are drawn; temperature 0 for greedy answers.

    Greedy answers are those of `generate(do_sample=False)` without the processors of logits that the model's
    generation config may add, such as a repetition penalty, and without tokens that stand for images. A model that
    cannot decode over shared prefixes answers by `generate`, one question at a time, and the log says so.
    """

    def __init__(self, model: nn.Module, processor: Processor, config: SamplingConfig) -> None:
        self._model = model  # which its VLM does not keep
        self._vlm, self._processor, self._config = VLM.of(model), processor, config
        self._vlm.require_whole_parameters()
        self._shared: _SharedAnswers | None = None
        self._separately = False

    def answers(self, questions: Sequence[Question]) -> Iterator[str]:
        """Yield the answer to every question, in their order.

        questions: those that follow each other about one image are answered together, and the same text about it once.

        Raises ExampleError that names a question that cannot be asked, and UnsupportedModelError for a drawn answer of
        a model that cannot decode over shared prefixes.
        """
        with self._vlm.held_in_evaluation_mode():
            groups = _groups(questions)
            if groups and not self._separately:
                self._try(groups)
            yield from map(self._generated, questions) if self._separately else self._together(groups)

    def _try(self, groups: list[_Texts]) -> None:
        try:
            if self._shared is None:
                self._shared = _SharedAnswers(self._vlm, shared_processor(self._processor), self._config)
            self._shared.try_sharing(groups)
        except UnsupportedModelError as error:
            if self._config.temperature:
                raise
            self._separately = True
            _LOG.warning("questions are answered one at a time, by generate: %s", error)

    def _generated(self, question: Question) -> str:
        with naming(question), self._vlm.evaluation_mode():
            images = load_images(str(question.image))
            return generated(self._vlm, self._processor, question.text, images, self._config.max_new_tokens)

    def _together(self, groups: list[_Texts]) -> Iterator[str]:
        if self._shared is None:
            return
        found: dict[int, str] = {}
        following = 0
        with closing(self._shared.run(groups)) as answers:
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


class _SharedAnswers:
    """Answers over shared prefixes. Raises UnsupportedModelError for a model that cannot decode so exactly."""

    def __init__(self, vlm: VLM, processor: Processor, config: SamplingConfig) -> None:
        self._vlm, self._processor, self._config = vlm, processor, config
        self._reader = ExampleReader(vlm, processor, config.max_new_tokens)
        self._scheduler: Scheduler[_Job] = Scheduler(vlm, processor, config)
        self._shares = False
        self._tried = 0  # with how many questions about one image: none, one, or several

    def run(self, groups: list[_Texts]) -> Generator[tuple[int, str]]:
        """Yield (number of the question, answer) as answers end."""
        missing = sum(len(numbers) for texts in groups for _, numbers in texts)
        with ReaderPool(self._config.num_workers, self._vlm.device) as readers:
            source = chain.from_iterable(readers.map(self._read, groups))
            while missing:
                with self._vlm.evaluation_mode(), torch.no_grad():
                    jobs = self._scheduler.advance(lambda: next(source, None), self._start)
                for job, error in jobs:
                    if error is not None:
                        with naming(job.texts[0][0]):
                            raise error
                    for (_, numbers), branch in zip(job.texts, job.branches, strict=True):
                        yield from ((number, branch.text.strip()) for number in numbers)
                        missing -= len(numbers)

    def try_sharing(self, groups: list[_Texts]) -> None:
        """Try the model with the first questions that could share a prompt, unless that was done before."""
        texts = next((group for group in groups if len(group) > 1), groups[0])
        if min(len(texts), 2) <= self._tried:
            return
        prompts = self._prompts(texts)
        example = prompts or self._prompts(texts[:1])
        assert example is not None  # one question shares all of its prompt with itself
        with self._vlm.evaluation_mode(), torch.no_grad():
            (encoded,) = self._reader.encode([example.example])
        if isinstance(encoded, Exception):
            with naming(texts[0][0]):
                raise encoded
        self._tried = min(len(texts), 2)
        self._shares = len(texts) > 1 and self._may_share(prompts, encoded)

    def _may_share(self, prompts: SharedPrompts | None, encoded: EncodedExample) -> bool:
        """Whether questions about one image may share its prompt, and say so."""
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


def _groups(questions: Sequence[Question]) -> list[_Texts]:
    """The different questions about each image, with the numbers of those who ask them."""
    return [_texts(list(group)) for _, group in groupby(enumerate(questions), key=lambda pair: pair[1].image)]


def _texts(asked: Iterable[tuple[int, Question]]) -> _Texts:
    found: dict[str, tuple[Question, list[int]]] = {}
    for number, question in asked:
        found.setdefault(question.text, (question, []))[1].append(number)
    return list(found.values())
