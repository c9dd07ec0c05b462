"""Where a rejected response departs from what it is compared with, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MOST_COMPARISONS = 4_000_000  # of a word with a word: under a second


@dataclass(frozen=True)
class Piece:
    """A stretch of a rejected response, and whether it departs from what it is compared with."""

    text: str
    changed: bool


def pieces(rejected: str, sentences: Iterable[tuple[str, str]], chosen: str | None = None) -> list[Piece]:
    """The rejected response in stretches that tile it, changed and unchanged words apart.

    Each sentence is compared with its own reference sentence. A response without sentences is compared with the chosen
    one as a whole; without that, all of it is changed. Two texts of thousands of words count as different between the
    words that they begin and end with alike.

    rejected: the response.
    sentences: for each of its sentences the reference, and what was written for it (`kept` and `completion` of a
        `SentenceSplice`); empty for an unguided response.
    chosen: the chosen response, where it is known.
    """
    spliced = list(sentences)
    if not spliced:
        return [Piece(rejected, True)] if chosen is None else _joined(_compared(chosen, rejected))
    found: list[Piece] = []
    begin = 0
    for number, (reference, written) in enumerate(spliced, 1):
        end = begin + len(written)
        while end < len(rejected) and rejected[end].isspace():
            end += 1
        if number == len(spliced):
            end = len(rejected)
        found += _compared(reference, rejected[begin:end])
        begin = end
    return _joined(found)


def _compared(reference: str, response: str) -> Iterator[Piece]:
    before, after = _WORDS.findall(reference), _WORDS.findall(response)
    same = _common_length(before, after)
    before, head, after = before[same:], after[:same], after[same:]
    same = _common_length(before[::-1], after[::-1])
    before, after, tail = before[: len(before) - same], after[: len(after) - same], after[len(after) - same :]
    yield Piece("".join(head), False)
    for words, changed in _middle(before, after):
        text = "".join(words)
        yield Piece(text, changed and not text.isspace())
    yield Piece("".join(tail), False)


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _middle(before: list[str], after: list[str]) -> Iterator[tuple[list[str], bool]]:
    if len(before) * len(after) > _MOST_COMPARISONS:
        yield after, True
        return
    for tag, _, _, begin, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        yield after[begin:end], tag != "equal"


def _joined(found: Iterable[Piece]) -> list[Piece]:
    """The pieces with neighbours of one kind as one, and without empty ones."""
    kinds = groupby((piece for piece in found if piece.text), key=lambda piece: piece.changed)
    return [Piece("".join(piece.text for piece in kind), changed) for changed, kind in kinds]
