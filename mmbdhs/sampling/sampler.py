"""Algorithm 1 over a stream of examples: a bounded number of branches decode at a time, topped up as they end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmbdhs.decoding import Branch, BranchPool, end_token_ids, token_chooser
from mmbdhs.native import ops
from mmbdhs.sampling.config import BDHSConfig
from mmbdhs.sampling.examples import EXAMPLE_ERRORS, EncodedExample, Example, ExampleReader
from mmbdhs.sampling.image_corruption import noisy_images, visible_image_tokens
from mmbdhs.sampling.results import BDHSFailure, BDHSSample
from mmbdhs.sampling.similarity import Similarity
from mmbdhs.sampling.splicing import Reference, SentenceSplice
from mmbdhs.sampling.stopping import Continuation, SentenceStops
from mmbdhs.vlm import DecoderInputs, tokenizer_of

_PREFILL_TOKENS = 8192  # padded tokens in one prefill: bounds its memory whatever max_branches is
_SCORED_TOGETHER = 32  # responses handed to the similarity model at once

Result = tuple[int, BDHSSample | BDHSFailure]


@dataclass(eq=False)
class _Pair:
    """An example on its way through the iterations."""

    example: Example
    reference: Reference
    encoded: EncodedExample | None = None
    iteration: int = 0
    guided: bool = True
    visible: Tensor | None = None
    branches: list[Branch] = field(default_factory=list)
    unended: int = 0
    rejected: str = ""


class Sampler:
    """Runs Algorithm 1 for one model."""

    def __init__(self, model: nn.Module, processor: Any, config: BDHSConfig, similarity: Similarity) -> None:
        self._processor, self._config, self._similarity = processor, config, similarity
        self._reader = ExampleReader(model, processor, max(config.max_sentence_tokens, config.max_new_tokens))
        tokenizer = tokenizer_of(processor)
        stops = SentenceStops(tokenizer, end_token_ids(model, tokenizer))
        self._pool = BranchPool(
            model,
            config.max_branches,
            token_chooser(model, tokenizer, config.temperature, config.top_k, config.top_p),
            stops,
        )
        self._again: deque[_Pair] = deque()  # too similar, to be sampled once more
        self._unscored: list[_Pair] = []
        self._decoding = 0  # pairs with branches in the pool
        self._exhausted = False

    def run(self, examples: Iterable[tuple[int, Any, Any, str, int | str | None]]) -> Iterator[Result]:
        """examples: (index, images, prompt, reference, key). Yields results as they finish."""
        source = iter(examples)
        while not self._exhausted or self._again or self._unscored or len(self._pool):
            yield from self._advance(source)

    @torch.no_grad()
    def _advance(self, source: Iterator[Any]) -> list[Result]:
        results = self._refill(source)
        for branch in self._pool.step():
            results += self._collect(branch)
        # At the end of the stream half of the pairs wait for the others: few calls, and the pool is not idle for long.
        enough = min(_SCORED_TOGETHER, max(self._decoding, 1)) if self._exhausted else _SCORED_TOGETHER
        if len(self._unscored) >= enough:
            results += self._score()
        return results

    def _refill(self, source: Iterator[Any]) -> list[Result]:
        """Top up the pool once a good part of it is free, several prompts in one prefill."""
        results: list[Result] = []
        room = self._pool.room
        if len(self._pool) and room < math.ceil(self._config.max_branches / 4):
            return results
        batch: list[tuple[DecoderInputs, list[Branch]]] = []
        while room > 0 and (pair := self._next_pair(source, results)):
            try:
                started = self._start(pair)
            except EXAMPLE_ERRORS as error:
                results.append(_failure(pair.example.index, pair.example.key, error))
                continue
            if (len(batch) + 1) * max(len(prompt) for prompt, _ in [*batch, started]) > _PREFILL_TOKENS and batch:
                self._pool.add(batch)
                batch = []
            batch.append(started)
            self._decoding += 1
            room -= len(started[1])
        if batch:
            self._pool.add(batch)
        return results

    def _next_pair(self, source: Iterator[Any], results: list[Result]) -> _Pair | None:
        if self._again:
            return self._again.popleft()
        for index, images, prompt, reference, key in source:
            try:
                example = self._reader.read(index, images, prompt, reference, key)
                return _Pair(example, Reference(self._processor, example.turn, reference))
            except EXAMPLE_ERRORS as error:
                results.append(_failure(index, key, error))
        self._exhausted = True
        return None

    def _start(self, pair: _Pair) -> tuple[DecoderInputs, list[Branch]]:
        """Begin the next iteration: a fresh mask or noise, fresh cuts, a branch for each sentence."""
        config, example = self._config, pair.example
        pair.iteration += 1
        last = pair.iteration == config.max_iterations > 1
        pair.guided = config.guided and not last
        pair.encoded, pair.visible = self._corrupt(pair)
        address = config.seed, example.address, pair.iteration
        cuts = pair.reference.draw(*address) if pair.guided else [None]
        shared = [cut.shared_length if cut else 0 for cut in cuts]
        inputs = pair.encoded.inputs.show(pair.visible, pair.encoded.inputs.prompt_length + max(shared))
        prompt_length = len(inputs) - max(shared)
        limit = config.max_sentence_tokens if pair.guided else config.max_new_tokens
        draws = self._draws(address, len(cuts), limit)
        pair.branches = []
        for cut, length, uniforms in zip(cuts, shared, draws, strict=True):
            forced = cut.forced_ids if cut else ()
            context = (*pair.encoded.prompt_tail, *pair.reference.token_ids[:length], *forced)
            owner = Continuation(pair, cut, context)
            pair.branches.append(Branch(prompt_length + length, limit, forced, uniforms, owner))
        pair.unended = len(cuts)
        return inputs, pair.branches

    def _corrupt(self, pair: _Pair) -> tuple[EncodedExample, Tensor]:
        """The images are encoded once, or once for each draw of noise."""
        config, example, encoded = self._config, pair.example, pair.encoded
        address = config.seed, example.address, pair.iteration
        if config.noise_steps:
            noisy = noisy_images(example.images, config.noise_steps, *address)
            encoded = self._reader.encode(example, noisy)
            return encoded, torch.arange(len(encoded.inputs.image_positions))
        encoded = encoded or self._reader.encode(example, example.images)
        count = len(encoded.inputs.image_positions)
        return encoded, visible_image_tokens(*address, count, config.mask_threshold)

    def _draws(self, address: tuple[int, int, int], count: int, length: int) -> Tensor:
        """The uniforms of each branch's tokens, [count, length]; none, [count, 0], when decoding is greedy."""
        if self._config.temperature == 0:
            return torch.empty(count, 0)
        seed, key, iteration = address
        keys, sentences = torch.full((count,), key), torch.arange(count, dtype=torch.int32)
        return ops.random_uniform(seed, keys, ops.TOKEN, iteration, sentences, length)

    def _collect(self, branch: Branch) -> list[Result]:
        """Take in a branch that ended; the last of a pair completes its candidate response."""
        pair: _Pair = branch.owner.pair
        if not pair.branches:  # another branch of it has failed
            return []
        if branch.error:
            self._pool.discard(pair.branches)
            self._decoding -= 1
            pair.branches = []
            return [_failure(pair.example.index, pair.example.key, branch.error)]
        pair.unended -= 1
        if pair.unended == 0:
            owners = [branch.owner for branch in pair.branches]
            texts, cuts = [owner.text for owner in owners], [owner.cut for owner in owners]
            pair.rejected = pair.reference.join(cuts, texts) if pair.guided else texts[0].strip()
            self._decoding -= 1
            self._unscored.append(pair)
        return []

    def _score(self) -> list[Result]:
        """Accept what differs in meaning, and whatever the last iteration brought."""
        pairs, self._unscored = self._unscored, []
        references = [pair.example.reference for pair in pairs]
        scores = [float(score) for score in self._similarity([pair.rejected for pair in pairs], references)]
        if len(scores) != len(pairs) or any(math.isnan(score) for score in scores):
            raise ValueError(f"similarity: needs {len(pairs)} numbers for {len(pairs)} pairs of texts, got {scores}")
        results: list[Result] = []
        for pair, score in zip(pairs, scores, strict=True):
            if score >= self._config.similarity_threshold and pair.iteration < self._config.max_iterations:
                self._again.append(pair)
            else:
                results.append((pair.example.index, _sample(pair, score)))
        return results


def _sample(pair: _Pair, similarity: float) -> BDHSSample:
    return BDHSSample(
        key=pair.example.key,
        rejected=pair.rejected,
        similarity=similarity,
        iterations=pair.iteration,
        guided=pair.guided,
        visible_image_tokens=tuple(pair.visible.tolist()),
        sentences=tuple(_splice(pair.reference, branch) for branch in pair.branches) if pair.guided else (),
        response_ids=None if pair.guided else tuple(pair.branches[0].ids),
    )


def _splice(reference: Reference, branch: Branch) -> SentenceSplice:
    cut = branch.owner.cut
    return SentenceSplice(
        reference=cut.reference,
        swapped=cut.swapped,
        cut=cut.cut,
        kept=cut.kept,
        completion=branch.owner.text,
        prefix_ids=(*reference.token_ids[: cut.shared_length], *cut.forced_ids),
        completion_ids=tuple(branch.ids),
    )


def _failure(index: int, key: int | str | None, error: Exception) -> Result:
    return index, BDHSFailure(key, index, str(error))
