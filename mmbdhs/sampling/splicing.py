"""Reference-guided completion (Eq. 7): sentences, yes/no swaps, cuts and joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmbdhs.errors import ExampleError
from mmbdhs.native import ops
from mmbdhs.sampling.sentence_tokens import Place, ReferenceTokens, Variant
from mmbdhs.vlm import Processor, Turn


@dataclass(frozen=True)
class SentenceSplice:
    """One sentence of a rejected response: what was kept of the reference and what the model made of the rest.

    reference: the sentence with the gap after it (white space and markup), and for a text's first sentence the one
        before it; the references of a sample tile its reference text.
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
class _Sentence:
    """A sentence of a reference.

    text: the sentence with its gaps.
    gap: how many characters of it come before its content.
    written: the sentence as the reference has it.
    swapped: with the counterpart of its leading yes/no; None if it has none.
    """

    text: str
    gap: int
    written: Variant
    swapped: Variant | None


@dataclass(frozen=True)
class Cut:
    """A sentence whose end the model is to write.

    reference, swapped, cut, kept: as in `SentenceSplice`.
    keeps_content: whether more of the sentence is kept than the gap before it.
    reference_ids: the tokens of the whole reference.
    shared_length: how many of these precede the completion; all branches of the reference share them.
    forced_ids: the tokens that follow the shared ones in this branch alone, those of a swapped sentence.
    """

    reference: str
    swapped: bool
    cut: int
    kept: str
    keeps_content: bool
    reference_ids: tuple[int, ...]
    shared_length: int
    forced_ids: tuple[int, ...]

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The response's tokens before the completion."""
        return self.last_ids(self.shared_length + len(self.forced_ids))

    def last_ids(self, count: int) -> tuple[int, ...]:
        """The last `count` tokens before the completion, or all if there are fewer."""
        begin = max(self.shared_length + len(self.forced_ids) - count, 0)
        return (
            *self.reference_ids[begin : self.shared_length],
            *self.forced_ids[max(begin - self.shared_length, 0) :],
        )

    def completed(self, completion: str, completion_ids: Sequence[int]) -> SentenceSplice:
        """The sentence with the model's completion."""
        return SentenceSplice(
            self.reference, self.swapped, self.cut, self.kept, completion, self.prefix_ids, tuple(completion_ids)
        )


class Reference:
    """A reference, split into sentences once and cut at new positions in each iteration (Eq. 7).

    A sentence of n tokens is cut after 1 … n − 1 of them. Only whole words are swapped, where the paper's expression
    would also find "Not", and a cut comes after the swapped word.

    has_markup: whether there is more than white space between sentences, such as <think>.

    Raises ExampleError for a text that has no content.
    """

    def __init__(self, processor: Processor, turn: Turn, text: str) -> None:
        self._flat, self._offsets = ragged([text])
        self._table, self._sentence_offsets = ops.split_sentences(self._flat, self._offsets)
        places = _places(text, self._table)
        if not any(place.content_begin < place.content_end for place in places):
            raise ExampleError(f"references: needs text besides markup and white space, got {text!r}")
        gaps = [text[p.begin : p.content_begin] + text[p.content_end : p.end] for p in places]
        self.has_markup = bool("".join(gaps).strip())
        self._tokens = ReferenceTokens(processor, turn, text)
        self._sentences = [
            _Sentence(
                text[place.begin : place.end],
                place.content_begin - place.begin,
                self._tokens.written(place),
                self._tokens.swapped(place) if place.word_begin >= 0 else None,
            )
            for place in places
        ]

    def __len__(self) -> int:
        """The number of sentences."""
        return len(self._sentences)

    def draw(self, seed: int, key: int, iteration: int) -> list[Cut]:
        """A swap and a cut for each sentence, by addressed draws."""
        count = len(self._sentences)
        choices = [[len(s.written.cuts), len(s.swapped.cuts) if s.swapped else 0] for s in self._sentences]
        swappable = torch.tensor([s.swapped is not None for s in self._sentences])
        as_written, other = torch.tensor(choices, dtype=torch.int32).T.contiguous()
        keys, numbers = torch.full((count,), key), torch.arange(count, dtype=torch.int32)
        drawn = ops.draw_splices(seed, keys, iteration, numbers, swappable, as_written, other)
        pairs = zip(self._sentences, *(column.tolist() for column in drawn), strict=True)
        return [self._cut(sentence, swap, choice) for sentence, swap, choice in pairs]

    def _cut(self, sentence: _Sentence, swap: bool, choice: int) -> Cut:
        variant = sentence.swapped if swap and sentence.swapped else sentence.written
        cut, end = variant.cuts[choice]
        count = variant.token_begin + cut
        shared = min(count, variant.shared)
        return Cut(
            reference=sentence.text,
            swapped=swap,
            cut=cut,
            kept=variant.text[:end],
            keeps_content=end > sentence.gap,
            reference_ids=self._tokens.ids,
            shared_length=shared,
            forced_ids=variant.own_ids[: count - shared],
        )

    def join(self, cuts: Sequence[Cut], completions: Sequence[str]) -> str:
        """The rejected response: kept + completion of each sentence, with the reference's own gaps."""
        swaps = torch.tensor([cut.swapped for cut in cuts])
        kept = torch.tensor([len(cut.kept.encode()) for cut in cuts])
        flat, _ = ops.join_splices(
            self._flat,
            self._offsets,
            self._table,
            self._sentence_offsets,
            swaps,
            kept,
            *ragged(completions),
        )
        return bytes(flat.numpy()).decode()


def _places(text: str, table: Tensor) -> list[Place]:
    """The rows of the sentence table, with character positions in place of byte positions."""
    starts = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80  # the first byte of each character
    characters, positions = np.concatenate([[0], starts.cumsum()]), table.numpy()
    rows = np.where(positions < 0, positions, characters[positions]).tolist()
    begins = [0, *(row[1] for row in rows)]
    return [Place(begin, *row) for begin, row in zip(begins, rows, strict=False)]


def leading_answer(text: str) -> str | None:
    """The yes or no that a text begins with, in lower case, as Algorithm 1 finds it; None if there is none."""
    flat, offsets = ragged([text])
    table, _ = ops.split_sentences(flat, offsets)
    begin, end = table[0, 2:4].tolist() if len(table) else (-1, -1)
    return bytes(flat[begin:end].tolist()).decode().lower() if begin >= 0 else None


def ragged(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The texts' UTF-8 bytes one after another, uint8 [N], and where each begins, int64 [texts + 1]."""
    encoded = [text.encode() for text in texts]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)), offsets
