"""Free sampling: any number of whole responses to each image prompt, decoded together over one prefill."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmbdhs.checks import check_on_error, each_of, equal_lengths, given, instance, integer
from mmbdhs.data import Images, Prompt, as_key, key_address
from mmbdhs.errors import ExampleError
from mmbdhs.native import ops
from mmbdhs.sampling.config import SamplingConfig
from mmbdhs.sampling.examples import (
    EXAMPLE_ERRORS,
    EncodedExample,
    ExampleReader,
    ProcessedExample,
    PromptExample,
    numbered,
)
from mmbdhs.sampling.reader_pool import ReaderPool
from mmbdhs.sampling.results import BDHSFailure, SampledResponse, checked_result
from mmbdhs.sampling.scheduler import Scheduler, Started
from mmbdhs.sampling.stopping import ResponseBranch
from mmbdhs.vlm import VLM, DecoderInputs, Processor, shared_processor

Keys = int | str | Sequence[int | str]


def sample_responses(
    model: nn.Module,
    processor: Processor,
    images: Sequence[Images],
    prompts: Sequence[Prompt],
    config: SamplingConfig | None = None,
    num_return_sequences: int = 1,
    keys: Sequence[Keys] | None = None,
    progress: bool = False,
    on_error: str = "raise",
) -> list[list[SampledResponse] | BDHSFailure]:
    """Sample whole responses to each image prompt. The image is encoded once and the prompt runs once, however many
    responses continue it.

    model: a VLM of `transformers`.
    processor: its processor, which needs a chat template and a fast tokenizer.
    images: for each prompt a PIL image, a path or encoded bytes, or a list of these.
    prompts: strings, put into a user turn with the images first, message lists, or ChatPrompts.
    config: how tokens are drawn.
    num_return_sequences: responses to each prompt.
    keys: for each prompt a key that addresses its random draws, or one key for each of its responses. Response i of
        a prompt with the key k has the key "k/i". None for a hash of the prompt's content, so that draws do not depend
        on the order of the prompts.
    progress: whether to show a progress bar.
    on_error: "raise" an ExampleError at the first bad prompt, or "skip" it: a BDHSFailure takes its place.

    Returns the responses in the order of the prompts. Raises ValueError for lists of unequal length and
    UnsupportedModelError for a model that cannot decode over shared prefixes exactly.
    """
    equal_lengths(images=images, prompts=prompts, **given(keys=keys))
    stream = iter_responses(model, processor, images, prompts, config, num_return_sequences, keys, on_error)
    return in_order(stream, len(prompts), "prompt" if progress else None)


def iter_responses(
    model: nn.Module,
    processor: Processor,
    images: Iterable[Images],
    prompts: Iterable[Prompt],
    config: SamplingConfig | None = None,
    num_return_sequences: int = 1,
    keys: Iterable[Keys] | None = None,
    on_error: str = "raise",
) -> Iterator[tuple[int, list[SampledResponse] | BDHSFailure]]:
    """`sample_responses` for streams: takes iterables and yields (index, responses) as they finish.

    How the iterables are taken from, and what the generator holds until it ends or is closed, is as in
    `iter_bdhs_samples`.
    """
    check_on_error(on_error)
    each_of(images=images, prompts=prompts, **given(keys=keys))
    integer("num_return_sequences", num_return_sequences, 1)
    config = SamplingConfig() if config is None else config
    instance("config", config, SamplingConfig)
    vlm = VLM.of(model)
    vlm.require_whole_parameters()
    sampler = _ResponseSampler(vlm, shared_processor(processor), config, num_return_sequences)
    with vlm.held_in_evaluation_mode(), closing(sampler.run(numbered(images, prompts, keys=keys))) as results:
        for index, result in results:
            yield index, checked_result(result, on_error)


def whole_responses(
    config: SamplingConfig,
    inputs: DecoderInputs,
    context_ids: tuple[int, ...],
    addresses: Sequence[int],
    iteration: int,
) -> list[ResponseBranch]:
    """A branch for each of several whole responses to one prompt.

    inputs: the prompt, all of which the responses see.
    context_ids: its last tokens, as context for decoding text.
    addresses: the 64 bits that address each response's draws, with `iteration`.
    """
    limit = config.max_new_tokens
    uniforms = token_draws(config, addresses, iteration, [0] * len(addresses), limit)
    return [
        ResponseBranch(prefix_length=len(inputs), limit=limit, uniforms=draws, context_ids=context_ids)
        for draws in uniforms
    ]


def token_draws(
    config: SamplingConfig, addresses: Sequence[int], iteration: int, sentences: Sequence[int], length: int
) -> Tensor:
    """The uniforms of each branch's tokens, [branches, length]; [branches, 0] for greedy decoding.

    addresses, sentences: of each branch; with the seed, the iteration and the token's number they address a draw.
    """
    if config.temperature == 0:
        return torch.empty(len(addresses), 0)
    numbers = torch.tensor(list(sentences), dtype=torch.int32)
    return ops.random_uniform(config.seed, torch.tensor(addresses), ops.TOKEN, iteration, numbers, length)


def in_order(stream: Iterator[tuple[int, Any]], count: int, unit: str | None) -> list[Any]:
    """The results of a stream of (index, result), in the order of their indices.

    unit: what a progress bar counts; None for no bar.
    """
    if unit:
        from tqdm.auto import tqdm

        stream = tqdm(stream, total=count, desc="sampling", unit=unit)
    results: list[Any] = [None] * count
    for index, result in stream:
        results[index] = result
    return results


@dataclass(eq=False)
class _Request:
    """A prompt on its way, and its responses once they have started."""

    example: PromptExample
    inputs: ProcessedExample
    keys: Sequence[int | str]
    responses: list[ResponseBranch] = field(default_factory=list)

    @property
    def branch_count(self) -> int:
        return len(self.keys)


class _ResponseSampler:
    def __init__(self, vlm: VLM, processor: Processor, config: SamplingConfig, count: int) -> None:
        self._vlm, self._config, self._count = vlm, config, count
        self._reader = ExampleReader(vlm, processor, config.max_new_tokens)
        self._scheduler: Scheduler[_Request] = Scheduler(vlm, processor, config)
        self._source: Iterator[_Request | tuple[int, BDHSFailure]] = iter(())
        self._exhausted = False
        self._unreadable: list[tuple[int, BDHSFailure]] = []

    def run(self, prompts: Iterable[tuple[Any, ...]]) -> Generator[tuple[int, list[SampledResponse] | BDHSFailure]]:
        """Yield (index, result) as results finish.

        prompts: rows (index, images, prompt, key).
        """
        with ReaderPool(self._config.num_workers, self._vlm.device) as readers:
            self._source = readers.map(self._read, prompts)
            while not self._exhausted or len(self._scheduler):
                with self._vlm.evaluation_mode(), torch.no_grad():
                    ended = self._scheduler.advance(self._next_request, self._start)
                yield from self._unreadable
                self._unreadable = []
                for request, error in ended:
                    example = request.example
                    failure = BDHSFailure(example.key, example.index, str(error))
                    yield example.index, _responses(request) if error is None else failure

    def _next_request(self) -> _Request | None:
        for found in self._source:
            if isinstance(found, _Request):
                return found
            self._unreadable.append(found)
        self._exhausted = True
        return None

    def _read(self, row: tuple[Any, ...]) -> _Request | tuple[int, BDHSFailure]:
        """A row of the stream as a request that can start, or its failure. Runs in the readers' threads."""
        index, images, prompt, key = row
        try:
            example = self._reader.read_prompt(index, images, prompt, key)
            keys = self._keys(example)
            key = example.key
            return _Request(example, self._reader.process_prompt(example), keys)
        except EXAMPLE_ERRORS as error:
            return index, BDHSFailure(key, index, str(error))

    def _keys(self, example: PromptExample) -> Sequence[int | str]:
        """The key of each response: the prompt's key with the response's number, or what the user gave."""
        key = example.key
        if not isinstance(key, (list, tuple)):
            return [f"{as_key(key)}/{number}" for number in range(self._count)]
        if len(key) != self._count:
            raise ExampleError(f"keys: needs one key, or one for each of {self._count} responses, got {len(key)}")
        return [as_key(one) for one in key]

    def _start(self, requests: list[_Request]) -> list[Started | Exception]:
        encoded = self._reader.encode([request.inputs for request in requests])
        return [
            one if isinstance(one, Exception) else self._continued(request, one)
            for request, one in zip(requests, encoded, strict=True)
        ]

    def _continued(self, request: _Request, encoded: EncodedExample) -> Started:
        addresses = [key_address(key) for key in request.keys]
        request.responses = whole_responses(self._config, encoded.inputs, encoded.prompt_tail, addresses, iteration=1)
        return encoded.inputs, request.responses


def _responses(request: _Request) -> list[SampledResponse]:
    return [
        SampledResponse(key, branch.text.strip(), tuple(branch.ids), branch.end_id)
        for key, branch in zip(request.keys, request.responses, strict=True)
    ]
