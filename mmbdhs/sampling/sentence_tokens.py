"""The tokens of a reference's sentences: where each may be cut, and what they are with a swapped yes or no."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from mmbdhs.native import COUNTERPARTS
from mmbdhs.vlm import Processor, Turn, common_length, reworded

_WINDOW = 32  # tokens before a swap that are tokenised again
_IN_STEP = 16  # of these, the tokens that should be as they were
_NO_TURN = Turn(text="", opening=0, start=0, token_ids=(), token_spans=(), closing_ids=())


@dataclass(frozen=True)
class Place:
    """Where a sentence is in its reference, as character positions.

    begin, end: its span.
    content_begin, content_end: the sentence without the gaps around it.
    word_begin, word_end: its leading yes or no; -1 if it has none.
    """

    begin: int
    content_end: int
    end: int
    word_begin: int
    word_end: int
    content_begin: int


@dataclass(frozen=True)
class Variant:
    """A sentence, as written or swapped.

    text: the sentence without the gap after it.
    token_begin: how many tokens come before the sentence.
    shared: how many tokens of the reference begin the text up to the sentence's end.
    own_ids: the tokens that follow these.
    cuts: (tokens kept, characters kept) of the sentence, for each position at which it may be cut.
    """

    text: str
    token_begin: int
    shared: int
    own_ids: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]


class TokenRow:
    """Consecutive tokens of a response.

    ids: the tokens.
    skipped: how many tokens come before them.
    begins, ends: the characters of each, as in `Turn.token_spans`. A begin is never less than the one before it.
    """

    def __init__(self, ids: tuple[int, ...], spans: Sequence[tuple[int, int]], skipped: int = 0) -> None:
        self.ids, self.skipped = ids, skipped
        self.begins = list(accumulate((begin for begin, _ in spans), max))
        self.ends = [end for _, end in spans]
        # After these tokens a cut splits no character.
        self._cuttable = [i for i, (before, after) in enumerate(pairwise(spans)) if before[1] <= after[0]]

    def before(self, character: int) -> int:
        """How many of the tokens begin before the character."""
        return bisect_left(self.begins, character)

    def cuts(self, begin: int, end: int, kept: int, least: int) -> tuple[tuple[int, int], ...]:
        """The cuts of the sentence at the characters [begin, end), as in `Variant`: those that keep the text up to
        `least`, or, if there are none, the one that keeps the text up to `kept`, with the rest of its last token."""
        first, stop, cuttable = self.before(begin), self.before(end), self._cuttable
        inside = cuttable[bisect_left(cuttable, first) : bisect_left(cuttable, stop - 1)]
        cuts = tuple((i + 1 - first, self.ends[i] - begin) for i in inside if self.ends[i] >= least)
        if cuts:
            return cuts
        count = max(first, self.before(kept))
        reached = max([kept, *self.ends[:count][-1:]])
        return ((count - first, min(reached, end) - begin),)


class ReferenceTokens:
    """The tokens of a reference's sentences, as written and swapped.

    ids: the tokens of the reference.
    """

    def __init__(self, processor: Processor, turn: Turn, text: str) -> None:
        self.ids = turn.token_ids
        self._processor, self._turn, self._text = processor, turn, text
        self._row = TokenRow(turn.token_ids, turn.token_spans)
        self._windows: dict[str, Turn] = {}  # many sentences of a long text may be alike

    def written(self, place: Place) -> Variant:
        """The sentence as the reference has it. Of a sentence of one token only its leading gap can be kept."""
        begin, end, gap_end, row = place.begin, place.content_end, place.content_begin, self._row
        cuts = row.cuts(begin, end, gap_end, gap_end + 1)
        return Variant(self._text[begin:end], row.before(begin), row.before(end), (), cuts)

    def swapped(self, place: Place) -> Variant:
        """The sentence with the counterpart of its yes or no, which every cut keeps. It has other tokens, perhaps
        together with what precedes it."""
        text, begin = self._text, place.begin
        word = COUNTERPARTS[text[place.word_begin : place.word_end].encode()].decode()
        sentence = text[begin : place.word_begin] + word + text[place.word_end : place.content_end]
        end, word_end = begin + len(sentence), place.word_begin + len(word)
        row = self._near(begin, sentence) or self._whole(begin, sentence)
        ids = row.ids[: row.before(end)]
        shared = common_length(ids, self.ids[row.skipped : self._row.before(place.content_begin)])
        cuts = row.cuts(begin, end, word_end, word_end)
        return Variant(sentence, row.skipped + row.before(begin), row.skipped + shared, ids[shared:], cuts)

    def _whole(self, begin: int, sentence: str) -> TokenRow:
        """The tokens of the reference's first `begin` characters and the sentence."""
        turn = reworded(self._processor, self._turn, self._text[:begin] + sentence)
        return TokenRow(turn.token_ids, turn.token_spans)

    def _near(self, begin: int, sentence: str) -> TokenRow | None:
        """The last tokens of what `_whole` returns.

        To tokenise the whole text for each sentence takes quadratic time. Tokens depend on little of what precedes
        them, so those of a window become the reference's own after a few. None if they do not, or if the text is short.
        """
        row, first = self._row, self._row.before(begin)
        if first < 2 * _WINDOW:
            return None
        start, step = row.ends[first - _WINDOW - 1], row.begins[first - _IN_STEP]
        text = self._text[start:begin] + sentence
        if text not in self._windows:
            self._windows[text] = reworded(self._processor, _NO_TURN, text)
        ids, spans = self._windows[text].token_ids, self._windows[text].token_spans
        at = next((i for i, span in enumerate(spans) if span[0] + start >= step), len(spans))
        skipped = row.before(step)
        if common_length(ids[at:], self.ids[skipped:first]) < _IN_STEP // 2 or spans[at][0] + start != step:
            return None
        return TokenRow(ids[at:], [(a + start, b + start) for a, b in spans[at:]], skipped)
