"""Reference-guided completion (Eq. 7): sentences, yes/no swaps, cuts and joins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native import COUNTERPARTS, ops
from mmbdhs.vlm import Processor, Turn, common_length, reworded


@dataclass(frozen=True)
class SentenceSplice:
    """One sentence of a rejected response: what was kept of the reference and what the model made of the rest.

    reference: the sentence with the white space after it; the references of a sample tile its reference text.
    swapped: whether its leading yes/no was replaced by the counterpart.
    cut: how many tokens of the (swapped) sentence were kept.
    kept: the text before the cut.
    completion: the text after the cut.
    prefix_ids: response tokens that the completion was conditioned on: all of the reference before the cut, and a
        swapped word in its own sentence alone.
    completion_ids: the generated tokens.
    """

    reference: str
    swapped: bool
    cut: int
    kept: str
    completion: str
    prefix_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True)
class _Variant:
    """A sentence, as written or swapped.

    text: the sentence.
    token_ids: the response's tokens up to the sentence's end.
    token_begin: how many of them come before the sentence.
    cuts: (tokens kept, characters kept) of the sentence, for each position at which it may be cut.
    """

    text: str
    token_ids: tuple[int, ...]
    token_begin: int
    cuts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Sentence:
    """A sentence of a reference.

    begin: its first character in the reference.
    written: the sentence as the reference has it.
    swapped: with the counterpart of its leading yes/no; None if it has none.
    """

    begin: int
    written: _Variant
    swapped: _Variant | None


@dataclass(frozen=True)
class Cut:
    """A sentence whose end the model is to write.

    reference, swapped, cut, kept, prefix_ids: as in `SentenceSplice`.
    shared_length: how many of `prefix_ids` all branches of the reference share; the others are forced tokens of a
        swapped sentence.
    """

    reference: str
    swapped: bool
    cut: int
    kept: str
    prefix_ids: tuple[int, ...]
    shared_length: int

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """The tokens that follow the shared ones in this branch alone."""
        return self.prefix_ids[self.shared_length :]

    def completed(self, completion: str, completion_ids: Sequence[int]) -> SentenceSplice:
        """The sentence with the model's completion."""
        return SentenceSplice(
            self.reference, self.swapped, self.cut, self.kept, completion, self.prefix_ids, tuple(completion_ids)
        )


class Reference:
    """A reference, split into sentences once and cut at new positions in each iteration (Eq. 7)."""

    def __init__(self, processor: Processor, turn: Turn, text: str) -> None:
        self.text, self.token_ids = text, turn.token_ids
        self._flat, self._offsets = ragged([text])
        self._table, self._sentence_offsets = ops.split_sentences(self._flat, self._offsets)
        self._sentences, begin = [], 0
        for content_end, end, word_begin, word_end, _ in _characters(text, self._table):
            written = _variant(turn, text[begin:end], begin, content_end)
            swapped = None
            if word_begin >= 0:
                word = COUNTERPARTS[text[word_begin:word_end].encode()].decode()
                sentence = text[begin:word_begin] + word + text[word_end:end]
                other = reworded(processor, turn, text[:begin] + sentence)
                swapped = _variant(other, sentence, begin, begin + len(sentence), word_begin + len(word))
            self._sentences.append(_Sentence(begin, written, swapped))
            begin = end

    def draw(self, seed: int, key: int, iteration: int) -> list[Cut]:
        """A swap and a cut for each sentence, by addressed draws."""
        count = len(self._sentences)
        choices = [[len(s.written.cuts), len(s.swapped.cuts) if s.swapped else 0] for s in self._sentences]
        swappable = torch.tensor([s.swapped is not None for s in self._sentences])
        written, other = torch.tensor(choices, dtype=torch.int32).T.contiguous()
        keys, numbers = torch.full((count,), key), torch.arange(count, dtype=torch.int32)
        drawn = ops.draw_splices(seed, keys, iteration, numbers, swappable, written, other)
        pairs = zip(self._sentences, *(column.tolist() for column in drawn), strict=True)
        return [self._cut(sentence, swapped, choice) for sentence, swapped, choice in pairs]

    def _cut(self, sentence: _Sentence, swapped: bool, choice: int) -> Cut:
        variant = sentence.swapped if swapped and sentence.swapped else sentence.written
        text = variant.text
        # Of a sentence of one token only the white space before it can be kept.
        cut, end = variant.cuts[choice] if variant.cuts else (0, len(text) - len(text.lstrip()))
        prefix_ids = variant.token_ids[: variant.token_begin + cut]
        shared = len(prefix_ids)
        if swapped:  # the swapped word tokenises differently, perhaps together with what precedes it
            shared = common_length(prefix_ids, self.token_ids[: sentence.written.token_begin])
        return Cut(
            reference=sentence.written.text,
            swapped=swapped,
            cut=cut,
            kept=text[:end],
            prefix_ids=prefix_ids,
            shared_length=shared,
        )

    def join(self, cuts: Sequence[Cut], completions: Sequence[str]) -> str:
        """The rejected response: kept + completion of each sentence, with the reference's own white space."""
        swapped = torch.tensor([cut.swapped for cut in cuts])
        kept = torch.tensor([len(cut.kept.encode()) for cut in cuts])
        flat, _ = ops.join_splices(
            self._flat,
            self._offsets,
            self._table,
            self._sentence_offsets,
            swapped,
            kept,
            *ragged(completions),
        )
        return bytes(flat.numpy()).decode()


def _variant(turn: Turn, sentence: str, begin: int, end: int, kept: int = 0) -> _Variant:
    """The sentence at the characters [begin, end) of the turn's response, which may be cut after character `kept`."""
    spans = turn.token_spans
    first = next((i for i, span in enumerate(spans) if span[0] >= begin), len(spans))
    stop = next((i for i, span in enumerate(spans) if span[0] >= end), len(spans))
    cuts = tuple(
        (count, before[1] - begin)
        for count, (before, after) in enumerate(itertools.pairwise(spans[first:stop]), 1)
        if before[1] <= after[0] and before[1] >= kept  # a cut splits no character
    )
    if kept and not cuts:
        cuts = ((stop - first, spans[stop - 1][1] - begin),)
    return _Variant(sentence, turn.token_ids[:stop], first, cuts)


def _characters(text: str, table: Tensor) -> list[list[int]]:
    """The sentence table with character positions in place of byte positions."""
    if text.isascii():
        return table.tolist()
    encoded = text.encode()
    return [[len(encoded[:n].decode()) if n >= 0 else n for n in row] for row in table.tolist()]


def ragged(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The texts' UTF-8 bytes one after another, uint8 [N], and where each begins, int64 [texts + 1]."""
    encoded = [text.encode() for text in texts]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)), offsets
