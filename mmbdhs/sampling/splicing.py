"""Reference-guided completion (Eq. 7): sentences, yes/no swaps, cuts and joins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbdhs.native import COUNTERPARTS, ops
from mmbdhs.vlm import Turn, reworded


@dataclass(frozen=True)
class SentenceSplice:
    """One sentence of a rejected response: what was kept of the reference and what the model made of the rest.

    reference: the sentence with the white space after it; the references of a sample tile its reference text.
    swapped: whether its leading yes/no was replaced by the counterpart.
    cut: how many tokens of the (swapped) sentence were kept.
    kept, completion: the text before and after the cut.
    prefix_ids: response tokens that the completion was conditioned on: all of the reference before the cut, a swapped
        word only in its own sentence.
    completion_ids: the tokens that were generated.
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

    token_ids: of the response up to the sentence's end. token_begin: how many of them stand before the sentence.
    cuts: (tokens kept, characters kept) of the sentence, for each place where it may be cut.
    """

    text: str
    token_ids: tuple[int, ...]
    token_begin: int
    cuts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Sentence:
    begin: int  # its first character in the reference
    written: _Variant
    swapped: _Variant | None


@dataclass(frozen=True)
class Cut:
    """A sentence with its draws.

    head: the text before the completion, from the beginning of the reference.
    begin: byte of `head` at which the sentence begins.
    shared_length: tokens of the reference that the branch shares with all others.
    forced_ids: the tokens of a swapped sentence, which follow them in this branch alone.
    """

    reference: str
    swapped: bool
    cut: int
    kept: str
    head: str
    begin: int
    shared_length: int
    forced_ids: tuple[int, ...]


class Reference:
    """A reference split into sentences once, to be cut anew in each iteration."""

    def __init__(self, processor: Any, turn: Turn, text: str) -> None:
        self.text, self.token_ids = text, turn.token_ids
        self._flat, self._offsets = ragged([text])
        self._table, self._sentence_offsets = ops.split_sentences(self._flat, self._offsets)
        self._sentences, begin = [], 0
        for content_end, end, word_begin, word_end in _characters(text, self._table):
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
        """A swap and a cut for each sentence, from their addressed draws."""
        count = len(self._sentences)
        choices = [[len(s.written.cuts), len(s.swapped.cuts) if s.swapped else 0] for s in self._sentences]
        swappable = torch.tensor([s.swapped is not None for s in self._sentences])
        written, other = torch.tensor(choices, dtype=torch.int32).T.contiguous()
        keys, numbers = torch.full((count,), key), torch.arange(count, dtype=torch.int32)
        drawn = ops.draw_splices(seed, keys, iteration, numbers, swappable, written, other)
        pairs = zip(self._sentences, *(column.tolist() for column in drawn), strict=True)
        return [self._cut(sentence, swapped, choice) for sentence, swapped, choice in pairs]

    def _cut(self, sentence: _Sentence, swapped: bool, choice: int) -> Cut:
        variant = sentence.swapped if swapped else sentence.written
        text, before = variant.text, self.text[: sentence.begin]
        # Nothing can be kept of a sentence of one token but the white space before it.
        cut, end = variant.cuts[choice] if variant.cuts else (0, len(text) - len(text.lstrip()))
        prefix_ids = variant.token_ids[: variant.token_begin + cut]
        shared = len(prefix_ids) if not swapped else _common(prefix_ids, self.token_ids[: sentence.written.token_begin])
        return Cut(
            reference=sentence.written.text,
            swapped=swapped,
            cut=cut,
            kept=text[:end],
            head=before + text[:end],
            begin=len(before.encode()),
            shared_length=shared,
            forced_ids=prefix_ids[shared:],
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
    """The sentence of the turn's response at the characters [begin, end), to be cut after character `kept`."""
    spans = turn.token_spans
    first = next((i for i, span in enumerate(spans) if span[0] >= begin), len(spans))
    stop = next((i for i, span in enumerate(spans) if span[0] >= end), len(spans))
    cuts = tuple(
        (count, before[1] - begin)
        for count, (before, after) in enumerate(itertools.pairwise(spans[first:stop]), 1)
        if before[1] <= after[0] and before[1] >= kept  # no character is split
    )
    if kept and not cuts:
        cuts = ((stop - first, spans[stop - 1][1] - begin),)
    return _Variant(sentence, turn.token_ids[:stop], first, cuts)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the two have in common at their beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _characters(text: str, table: Tensor) -> list[list[int]]:
    """The byte positions of a sentence table as character positions."""
    if text.isascii():
        return table.tolist()
    encoded = text.encode()
    return [[len(encoded[:n].decode()) if n >= 0 else n for n in row] for row in table.tolist()]


def ragged(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoded = [text.encode() for text in texts]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)), offsets
