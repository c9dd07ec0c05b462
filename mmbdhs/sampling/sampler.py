"""Algorithm 1 over a stream of examples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mmbdhs.errors import ExampleError
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import EXAMPLE_ERRORS, EncodedExample, Example, ExampleReader, ProcessedExample
from mmbdhs.sampling.image_corruption import visible_image_tokens
from mmbdhs.sampling.reader_pool import ReaderPool
from mmbdhs.sampling.responses import token_draws, whole_responses
from mmbdhs.sampling.results import BDHSFailure, BDHSSample
from mmbdhs.sampling.scheduler import Scheduler, Started
from mmbdhs.sampling.similarity import Similarity, scores
from mmbdhs.sampling.splicing import Reference
from mmbdhs.sampling.stopping import ResponseBranch, SentenceBranch
from mmbdhs.vlm import CONTEXT_TOKENS, VLM, Processor

_SCORED_TOGETHER = 32  # responses given to the similarity model at once

Result = tuple[int, BDHSSample | BDHSFailure]


@dataclass(eq=False)
class _Pair:
    """An example on its way through the iterations.

    inputs: prompt and reference with the images of the current iteration, before or after the model encoded them.
    guided: whether the reference guides this iteration.
    visible: indices of the image tokens that this iteration sees.
    sentences: the branches of a guided iteration.
    response: the branch of an unguided iteration.
    rejected: the response of this iteration, once its branches have ended.
    """

    example: Example
    reference: Reference
    inputs: ProcessedExample | EncodedExample
    iteration: int = 0
    guided: bool = True
    visible: Tensor = field(default_factory=lambda: torch.empty(0))
    sentences: Sequence[SentenceBranch] = ()
    response: ResponseBranch | None = None
    rejected: str = ""

    @property
    def branch_count(self) -> int:
        return len(self.reference) if self.guided else 1


class Sampler:
    """Runs Algorithm 1 for one model.

    Examples are read ahead of the model. Each example iterates: `_start` restricts the image (Eq. 6 or 9) and cuts the
    reference (Eq. 7), the scheduler decodes the branches of many examples together, and `_score` accepts the joined
    response or lets the example start once more.

    similarity: (responses, references) -> how alike each pair is.
    yield_similar: whether to yield the samples of iterations whose response is too similar, too.
    """

    def __init__(
        self, vlm: VLM, processor: Processor, config: BDHSConfig, similarity: Similarity, yield_similar: bool = False
    ) -> None:
        self._vlm, self._processor, self._config, self._similarity = vlm, processor, config, similarity
        self._yield_similar = yield_similar
        self._reader = ExampleReader(vlm, processor, max(config.max_sentence_tokens, config.max_new_tokens))
        self._scheduler: Scheduler[_Pair] = Scheduler(vlm, processor, config)
        self._readers = ReaderPool(config.num_workers, vlm.device)
        self._source: Iterator[_Pair | Result] = iter(())
        self._exhausted = False
        self._again: deque[Callable[[], _Pair | Result]] = deque()  # too similar, to be sampled once more
        self._unscored: list[_Pair] = []
        self._unreadable: list[Result] = []

    @property
    def live_branches(self) -> int:
        """The number of branches that are decoding or wait for a slot."""
        return self._scheduler.branch_count

    def run(self, examples: Iterable[tuple[Any, ...]]) -> Generator[Result]:
        """Yield (index, result) as results finish, of those that finish together failures last.

        examples: rows (index, images, prompt, reference, key).

        An error that ends the run, KeyboardInterrupt included, is raised after the samples that are finished.
        """
        with self._readers:
            self._source = self._readers.map(self._read, examples)
            while not self._exhausted or self._again or self._unscored or len(self._scheduler):
                try:
                    with self._vlm.evaluation_mode(), torch.no_grad():
                        results = self._advance()
                except BaseException:
                    yield from self.finished()
                    raise
                yield from sorted(results, key=lambda result: isinstance(result[1], BDHSFailure))

    def finished(self) -> list[Result]:
        """The samples that are accepted among the responses that wait to be scored."""
        with self._vlm.evaluation_mode(), torch.no_grad():
            return self._score() if self._unscored else []

    def _advance(self) -> list[Result]:
        results: list[Result] = []
        for pair, error in self._scheduler.advance(self._next_pair, self._start):
            if error is None:
                results += self._collect(pair)
            else:
                results.append(_failure(pair.example.index, pair.example.key, error))
        results += self._unreadable
        self._unreadable = []
        # At the end of the stream half of the pairs wait for the others: few calls, and the pool is not idle for long.
        enough = min(_SCORED_TOGETHER, max(len(self._scheduler), 1)) if self._exhausted else _SCORED_TOGETHER
        if len(self._unscored) >= enough:
            results += self._score()
        return results

    def _collect(self, pair: _Pair) -> list[Result]:
        """Take in the response of an iteration that ended. One that could not be trained on is drawn again, and is a
        failure in the last iteration."""
        pair.rejected = _text(pair)
        try:
            self._reader.rule.require_response("the model's response", pair.rejected)
        except ExampleError as error:
            if pair.iteration == self._config.max_iterations:
                return [_failure(pair.example.index, pair.example.key, error, no_response=True)]
            self._draw_again(pair)
        else:
            self._unscored.append(pair)
        return []

    def _draw_again(self, pair: _Pair) -> None:
        """Queue a pair for its next iteration, for which the readers process other noise."""
        noisy = self._config.noise_steps > 0
        self._again.append(self._readers.submit(self._read_again, pair).result if noisy else lambda: pair)

    def _next_pair(self) -> _Pair | None:
        """The next pair that can start; keeps the failures before it."""
        while True:
            found = self._again.popleft()() if self._again else next(self._source, None)
            if isinstance(found, _Pair):
                return self._with_next_iteration(found)
            if found is None:
                self._exhausted = True
                return None
            self._unreadable.append(found)

    def _with_next_iteration(self, pair: _Pair) -> _Pair:
        pair.iteration += 1
        # Without the reference the model would not write its markup, so chosen and rejected would differ in form.
        is_last = pair.iteration == self._config.max_iterations > 1 and not pair.reference.has_markup
        pair.guided = self._config.guided and not is_last
        return pair

    def _read(self, row: tuple[Any, ...]) -> _Pair | Result:
        """A row of the stream as a pair that can start, or its failure. Runs in the readers' threads."""
        index, images, prompt, reference, key = row
        try:
            example = self._reader.read(index, images, prompt, reference, key)
            key = example.key
            return _Pair(
                example, Reference(self._processor, example.turn, example.reference), self._process(example, 1)
            )
        except EXAMPLE_ERRORS as error:
            return _failure(index, key, error)

    def _read_again(self, pair: _Pair) -> _Pair | Result:
        """The pair with the images of its next iteration, or its failure. Runs in the readers' threads."""
        try:
            pair.inputs = self._process(pair.example, pair.iteration + 1)
        except EXAMPLE_ERRORS as error:
            return _failure(pair.example.index, pair.example.key, error)
        return pair

    def _process(self, example: Example, iteration: int) -> ProcessedExample:
        return self._reader.process(example, self._config.noise(example.address, iteration))

    def _start(self, pairs: list[_Pair]) -> list[Started | Exception]:
        """Begin the next iteration of each: a new mask or noise, new cuts, a branch for each sentence."""
        encoded = iter(
            self._reader.encode([pair.inputs for pair in pairs if isinstance(pair.inputs, ProcessedExample)])
        )
        started: list[Started | Exception] = []
        for pair in pairs:
            inputs = next(encoded) if isinstance(pair.inputs, ProcessedExample) else pair.inputs
            started.append(inputs if isinstance(inputs, Exception) else self._branches(pair, inputs))
        return started

    def _branches(self, pair: _Pair, encoded: EncodedExample) -> Started:
        pair.inputs = encoded
        pair.visible = self._visible(pair, encoded)
        pair.sentences, pair.response = (), None
        if pair.guided:
            return self._sentences(pair, encoded)
        inputs = encoded.inputs.keep_visible(pair.visible, encoded.inputs.prompt_length)
        (pair.response,) = whole_responses(
            self._config, inputs, encoded.prompt_tail, [pair.example.address], pair.iteration
        )
        return inputs, [pair.response]

    def _sentences(self, pair: _Pair, encoded: EncodedExample) -> Started:
        """A branch for each sentence, from a random cut (Eq. 7)."""
        address, iteration, limit = pair.example.address, pair.iteration, self._config.max_sentence_tokens
        cuts = pair.reference.draw(self._config.seed, address, iteration)
        longest = max(cut.shared_length for cut in cuts)
        inputs = encoded.inputs.keep_visible(pair.visible, encoded.inputs.prompt_length + longest)
        uniforms = token_draws(self._config, [address] * len(cuts), iteration, range(len(cuts)), limit)
        pair.sentences = [
            SentenceBranch(
                prefix_length=len(inputs) - longest + cut.shared_length,
                limit=limit,
                forced_ids=cut.forced_ids,
                # Where nothing at all is kept, the model could end the response before it has said anything.
                begin_suppress_tokens=()
                if cut.keeps_content or len(cuts) > 1
                else self._reader.rule.vocabulary.blank_ids,
                uniforms=draws,
                context_ids=(*encoded.prompt_tail, *cut.last_ids(CONTEXT_TOKENS)),
                cut=cut,
            )
            for cut, draws in zip(cuts, uniforms, strict=True)
        ]
        return inputs, pair.sentences

    def _visible(self, pair: _Pair, encoded: EncodedExample) -> Tensor:
        """Indices of the image tokens that this iteration sees: of a noisy image all."""
        count = len(encoded.inputs.image_positions)
        if self._config.noise_steps:
            return torch.arange(count)
        address = self._config.seed, pair.example.address, pair.iteration
        return visible_image_tokens(*address, count, self._config.mask_threshold)

    def _score(self) -> list[Result]:
        """Accept responses that differ in meaning, and whatever text the last iteration brought."""
        pairs, self._unscored = self._unscored, []
        scored = scores(self._similarity, [pair.rejected for pair in pairs], [pair.example.reference for pair in pairs])
        results: list[Result] = []
        for pair, score in zip(pairs, scored, strict=True):
            again = score >= self._config.similarity_threshold and pair.iteration < self._config.max_iterations
            if self._yield_similar or not again:
                results.append((pair.example.index, _sample(pair, score, self._config)))
            if again:
                self._draw_again(pair)
        return results


def _text(pair: _Pair) -> str:
    if pair.response is not None:
        turn = pair.example.turn  # whose generation prompt may hold the beginning of a response, such as <think>
        return (turn.text[turn.start : turn.opening] + pair.response.text).strip()
    return pair.reference.join([branch.cut for branch in pair.sentences], [branch.text for branch in pair.sentences])


def _sample(pair: _Pair, similarity: float, config: BDHSConfig) -> BDHSSample:
    encoded = cast(EncodedExample, pair.inputs)
    return BDHSSample(
        key=pair.example.key,
        rejected=pair.rejected,
        similarity=similarity,
        iterations=pair.iteration,
        guided=pair.response is None,
        visible_image_tokens=tuple(pair.visible.tolist()),
        sentences=tuple(branch.splice() for branch in pair.sentences),
        response_ids=None if pair.response is None else tuple(pair.response.ids),
        noise_steps=config.noise_steps,
        noise_range=config.noise_range if config.noise_steps else None,
        image_tokens=len(encoded.inputs.image_positions),
        image_grids=encoded.image_grids,
    )


def _failure(index: int, key: int | str | None, error: Exception, no_response: bool = False) -> Result:
    return index, BDHSFailure(key, index, str(error), no_response)
