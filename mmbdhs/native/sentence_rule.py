"""Where a sentence ends: the definition of the rule. csrc/text/sentences.cpp is the same rule in C++.

Text is UTF-8; a byte that belongs to no valid sequence counts as a letter. The characters and words that have a meaning
here are in `sentence_tables`. Three things come before the rule:

- A tag is <think>, </answer>, <|begin|>, ◁think▷ or the like: the bracket, perhaps /, an ASCII letter or |, at most 64
  bytes without either bracket or a line break, and the closing bracket. [THINK] and [/THINK] are tags as well. A tag
  counts as white space; a "<" that opens none is an ordinary character.
- Invisible characters (direction marks, zero-width spaces, variation selectors) are skipped wherever something is
  looked for: after stops, within and before words, at the start of a sentence, between spaces.
- A line of marks is the rest of a line that holds at least three of - * _ = ~ ` | : + # and nothing else but spaces
  (---, |---|---|), or ``` or ~~~ with at most one word after it (```python).
- A gap is white space, tags, lines of marks, and the invisible characters between them. A gap at the start of a
  sentence is skipped.

The sentence then ends at the first of these places:

1. Before a line break (LF, VT, FF, CR, U+0085, U+2028, U+2029).
2. After a run of stops . ! ? … (and ‼ ⁉ and their like) and the closers (quotes, brackets, * and _) that follow it
   directly, if white space or a tag comes next. If anything else comes next (a letter, a digit, a comma), the run is
   part of the sentence.
3. After a run that holds a stop of another script, such as 。 । ؟ ።, and its closers, whatever comes next. Only if a
   comma or semicolon comes directly after it, as in ؟،, is the run part of the sentence.
4. At the end of the text.

The gap directly before an end and the one after it belong to no sentence's content but to the span of the sentence that
ended, so that the spans of a text tile it. Rule 2 has exceptions, which look at the next character of the line that is
in no gap:

- Three things end a sentence only if that character is no lower-case letter: an ellipsis (two dots or more, or …),
  stops with closers (It says "Stop!" in red), and abbreviations that often close a sentence (etc. Inc. p.m. ft.).
- A single dot between a word such as No, Nos, p or Jan and a digit or # does not end the sentence (No. 7, Jan. 5).
- A single dot does not end the sentence after a title or reference (Mr. vs. Fig.), after letters joined by dots
  (U.S. Ph.D. e.g.), after one capital other than I (J. Smith), or after a list mark.

In a sentence that begins with |, the row of a table, no stop ends the sentence if the next character is |.

A list mark is a number of at most three digits, or one letter; where the sentence begins also several such numbers
joined by dots (1.1. The) and a Roman number of up to four letters i, v, x (ii. The). It is one
- before which the sentence holds nothing but gaps and marks of items, such as - * # > | • (1. The, a. The),
- or which follows an opening parenthesis, or : , or ; and a gap (There are: 1. a cat, 2. a dog; but not 10:30.).
The number after the sentence's last list mark is one too (Objects: 1. cat 2. dog).

The rule looks at nothing before the sentence. A stop at the very end of a text that may still grow is undecided, and so
is what follows a bracket that may still open a tag: a decided end never moves when text is appended. U+FFFD at the end
of such a text stands for a character whose bytes have not all arrived, and is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from mmbdhs.native.sentence_tables import (
    BREAKS,
    CLOSERS,
    COMMAS,
    COUNTERPARTS,
    FENCES,
    HARD_STOPS,
    INVISIBLE,
    LINE_LEAD,
    LIST_OPENERS,
    LOWER,
    MARKS,
    NEVER_FINAL,
    NON_WORD,
    NUMBERED,
    OFTEN_FINAL,
    SPACED_LIST_OPENERS,
    SPACES,
    STOPS,
    TAG_BRACKETS,
    TAG_BYTES,
    TAG_OPENERS,
    WHOLE_TAGS,
)

COLUMNS = ("content_end", "span_end", "word_begin", "word_end", "content_begin")
NO_STOP = -1
UNDECIDED = -2

_GO_ON, _END = 0, 1  # verdicts on one run of stops; UNDECIDED is the third
_NO_TAG = -1
_END_OF_TEXT = -1  # in place of a next character
_GAP = SPACES | INVISIBLE
_GAP_ON_LINE = _GAP - BREAKS
_SPACES_ON_LINE = SPACES - BREAKS
_MARKS_OR_SPACES = MARKS | _SPACES_ON_LINE
_PIPE = 0x7C
_AFTER_STOPS = CLOSERS | INVISIBLE
_NUMBER_BEGINS = frozenset(map(ord, "0123456789#"))
_BRACKETS = {ord(opening): ord(closing) for opening, closing in TAG_BRACKETS.items()}


def split(raw: bytes) -> list[list[int]]:
    """Split one text into rows of COLUMNS; see `ops.split_sentences`."""
    scan, rows, begin = _Scan(raw, final=True), [], 0
    while begin < len(scan.codes):
        content_end = _find_end(scan, begin)
        span_end = scan.skip_gap(content_end)
        content_begin = min(scan.skip_gap(begin), content_end)
        places = (content_end, span_end, *_swap_word(scan, content_begin), content_begin)
        rows.append([place if place < 0 else scan.at[place] for place in places])
        begin = span_end
    return rows


def end_of_sentence(raw: bytes, final: bool) -> int:
    """Find the byte where the sentence that begins with the text ends, or return NO_STOP or UNDECIDED.

    See `ops.sentence_ends`.
    """
    scan = _Scan(raw if final else raw[: _whole_length(raw)], final)
    end = _find_end(scan, 0)
    return end if end < 0 else scan.at[end]


class _Scan:
    """The characters of a text.

    codes: their code points.
    at: the byte where each one begins, and where the last one ends.
    final: whether no more text will follow.
    """

    def __init__(self, raw: bytes, final: bool) -> None:
        # A stray byte b becomes U+DC00 + b, which is in no table, so it counts as a letter.
        self.codes = [ord(char) for char in raw.decode("utf-8", "surrogateescape")]
        self.at = list(accumulate(map(_width, self.codes), initial=0))
        self.final = final

    def skip(self, index: int, kind: frozenset[int]) -> int:
        while index < len(self.codes) and self.codes[index] in kind:
            index += 1
        return index

    def skip_gap(self, index: int) -> int:
        """Skip a gap."""
        while True:
            index = self.skip(index, _GAP)
            end = max(self.tag_end(index), self._marks_end(index))
            if end < 0:
                return index
            index = end

    def next_on_line(self, index: int) -> int:
        """Return the first code point from `index` on that is in no gap, the line break before it, or a negative
        answer: _END_OF_TEXT, or UNDECIDED if only more text can tell."""
        index = self.skip(index, _GAP_ON_LINE)
        while (end := self.tag_end(index)) >= 0:
            index = self.skip(end, _GAP_ON_LINE)
        if index == len(self.codes):
            return _END_OF_TEXT if self.final else UNDECIDED
        return UNDECIDED if self.tag_end(index) == UNDECIDED else self.codes[index]

    def _marks_end(self, index: int) -> int:
        """Find the end of the line of marks at `index`, or return _NO_TAG. A line that may still grow is none."""
        codes, end = self.codes, self.skip(index, _MARKS_OR_SPACES)
        if sum(code in MARKS for code in codes[index:end]) < 3:
            return _NO_TAG
        if codes[index] in FENCES and codes[index : index + 3] == [codes[index]] * 3:
            end = next((i for i in range(end, len(codes)) if codes[i] in NON_WORD), len(codes))
            end = self.skip(end, _SPACES_ON_LINE)
        whole = self.final if end == len(codes) else codes[end] in BREAKS
        return end if whole else _NO_TAG

    def tag_end(self, index: int) -> int:
        """Find the end of the tag at `index`. Return _NO_TAG, or UNDECIDED if more text may complete one."""
        if index == len(self.codes) or self.codes[index] not in TAG_OPENERS:
            return _NO_TAG
        closing = _BRACKETS.get(self.codes[index])
        end = self._whole_tag_end(index) if closing is None else self._bracket_end(index, closing)
        return _NO_TAG if end == UNDECIDED and self.final else end

    def _whole_tag_end(self, index: int) -> int:
        for tag in WHOLE_TAGS:
            read = self.codes[index : index + len(tag)]
            if read == [ord(char) for char in tag[: len(read)]]:
                return index + len(tag) if len(read) == len(tag) else UNDECIDED
        return _NO_TAG

    def _bracket_end(self, index: int, closing: int) -> int:
        codes, opening = self.codes, self.codes[index]
        index += 2 if codes[index + 1 : index + 2] == [0x2F] else 1
        if index == len(codes):
            return UNDECIDED
        if not (codes[index] == 0x7C or (codes[index] < 0x80 and chr(codes[index]).isalpha())):
            return _NO_TAG
        begin = index = index + 1
        while index < len(codes) and codes[index] != closing:
            if codes[index] == opening or codes[index] in BREAKS or self.at[index + 1] - self.at[begin] > TAG_BYTES:
                return _NO_TAG
            index += 1
        return UNDECIDED if index == len(codes) else index + 1

    def word(self, begin: int, end: int) -> str:
        """The visible characters of [begin, end)."""
        return "".join(chr(code) for code in self.codes[begin:end] if code not in INVISIBLE)


@dataclass
class _Stop:
    """A run of stops [begin, run_end), with its closers and the invisible characters among them up to `after`."""

    begin: int
    run_end: int
    after: int
    run: list[int]
    closed: bool


@dataclass
class _SoFar:
    """What the rule remembers of the sentence that it reads.

    token: where the word begins that is being read, or -1.
    leading: whether the sentence holds nothing yet but gaps and characters of LINE_LEAD.
    opened: whether a word that begins next may be a list mark.
    opened_by_gap: whether it may be one if a gap comes first.
    token_opened: whether the word that is being read may be one.
    next_number: the number after the last list mark that is a number.
    in_row: whether the sentence begins with | and so is the row of a table.
    """

    token: int = -1
    leading: bool = True
    opened: bool = True
    opened_by_gap: bool = False
    token_opened: bool = False
    next_number: int | None = None
    in_row: bool | None = None

    def read(self, index: int, code: int) -> None:
        """Take one visible character that is no stop and in no gap."""
        self.in_row = code == _PIPE if self.in_row is None else self.in_row
        if code not in NON_WORD:
            if self.token < 0:
                self.token, self.token_opened = index, self.opened
            self.leading = self.opened = self.opened_by_gap = False
            return
        self.token = -1
        self.leading &= code in LINE_LEAD
        self.opened = self.leading or code in LIST_OPENERS
        self.opened_by_gap = code in SPACED_LIST_OPENERS

    def pass_gap(self) -> None:
        """Take a space or a tag."""
        self.token = -1
        self.opened |= self.opened_by_gap

    def pass_stop(self, joins: bool) -> None:
        """Take a run of stops that did not end the sentence; a dot between two letters `joins` them to a word."""
        self.leading = self.opened = self.opened_by_gap = False
        if not joins:
            self.token = -1

    def take_list_mark(self, word: str) -> bool:
        """Whether the word that was read is a list mark."""
        if not word.isascii():
            return False
        if not (word.isdigit() and len(word) <= 3):
            return self.token_opened and ((len(word) == 1 and word.isalpha()) or _is_numbering(word))
        if not self.token_opened and int(word) != self.next_number:
            return False
        self.next_number = int(word) + 1
        return True


def _is_numbering(word: str) -> bool:
    """Whether this is a Roman number of up to four letters i, v, x, or numbers joined by dots as in 1.1."""
    if len(word) <= 4 and any(word and set(word) <= set(letters) for letters in ("ivx", "IVX")):
        return True
    parts = word.split(".")
    return len(parts) > 1 and all(part.isdigit() and len(part) <= 3 for part in parts)


def _find_end(scan: _Scan, first: int) -> int:
    """Find the character before which the sentence that starts at `first` ends, or return a negative answer."""
    codes, so_far, content = scan.codes, _SoFar(), first
    index = scan.skip_gap(first)
    while index < len(codes):
        code, tag_end = codes[index], scan.tag_end(index)
        if code in BREAKS:
            return content
        if tag_end == UNDECIDED:
            return UNDECIDED
        if code in STOPS:
            stop = _read_stop(scan, index)
            verdict = _judge(scan, so_far, stop)
            if verdict != _GO_ON:
                return stop.after if verdict == _END else UNDECIDED
            index = content = stop.after
            so_far.pass_stop(joins=stop.run == [0x2E] and not stop.closed and codes[index] not in NON_WORD)
        elif code in SPACES or tag_end >= 0:
            index = max(index + 1, tag_end)
            so_far.pass_gap()
        else:
            if code not in INVISIBLE:
                so_far.read(index, code)
            if code not in INVISIBLE or content == index:
                content = index + 1
            index += 1
    return content if scan.final else NO_STOP


def _read_stop(scan: _Scan, begin: int) -> _Stop:
    run_end = scan.skip(begin, STOPS)
    after = scan.skip(run_end, _AFTER_STOPS)
    closed = not CLOSERS.isdisjoint(scan.codes[run_end:after])
    return _Stop(begin, run_end, after, scan.codes[begin:run_end], closed)


def _judge(scan: _Scan, so_far: _SoFar, stop: _Stop) -> int:
    """Whether the run of stops ends the sentence."""
    codes, after = scan.codes, stop.after
    if after == len(codes):
        return _END if scan.final else UNDECIDED
    if so_far.in_row and (following := scan.next_on_line(after)) in (_PIPE, UNDECIDED):
        return _GO_ON if following == _PIPE else UNDECIDED
    if codes[after] not in COMMAS and not HARD_STOPS.isdisjoint(stop.run):
        return _END
    if codes[after] not in SPACES:
        tag_end = scan.tag_end(after)
        if tag_end < 0:
            return UNDECIDED if tag_end == UNDECIDED else _GO_ON
    if stop.run != [0x2E]:
        only_dots = all(code in (0x2E, 0x2026) for code in stop.run)
        return _judge_by_next(scan, after, LOWER) if only_dots or stop.closed else _END
    word = scan.word(so_far.token, stop.begin) if so_far.token >= 0 else ""
    if _never_ends(word) or so_far.take_list_mark(word):
        return _GO_ON
    by_case, by_number = stop.closed or word in OFTEN_FINAL, word in NUMBERED
    if not (by_case or by_number):
        return _END
    go_on = (LOWER if by_case else frozenset()) | (_NUMBER_BEGINS if by_number else frozenset())
    return _judge_by_next(scan, after, go_on)


def _judge_by_next(scan: _Scan, after: int, go_on: frozenset[int]) -> int:
    following = scan.next_on_line(after)
    if following == UNDECIDED:
        return UNDECIDED
    return _GO_ON if following in go_on else _END


def _never_ends(word: str) -> bool:
    if word in OFTEN_FINAL:
        return False
    if word in NEVER_FINAL or (len(word) == 1 and "A" <= word <= "Z" and word != "I"):
        return True
    parts = word.split(".")
    return len(parts) > 1 and all(len(part) in (1, 2) and part.isascii() and part.isalpha() for part in parts)


def _swap_word(scan: _Scan, begin: int) -> tuple[int, int]:
    """Find the leading yes or no, by the regular expression of Algorithm 1; (-1, -1) if there is none.

    The "No" of a number, as in No. 7, is no answer.
    """
    codes = scan.codes
    for word in COUNTERPARTS:
        end = begin + len(word)
        if codes[begin:end] != list(word):
            continue
        after = scan.skip(end, INVISIBLE)
        whole = after == len(codes) or codes[after] in NON_WORD
        return (begin, end) if whole and not (word.decode() in NUMBERED and _number_follows(scan, after)) else (-1, -1)
    return -1, -1


def _number_follows(scan: _Scan, index: int) -> bool:
    """Whether a number comes next on the line, perhaps after a dot."""
    dot = scan.codes[index : index + 1] == [0x2E]
    return scan.next_on_line(index + dot) in _NUMBER_BEGINS


def _whole_length(raw: bytes) -> int:
    """Return the length of `raw` without a last character whose bytes have not all arrived, or are U+FFFD so far."""
    length = len(raw)
    for back in range(1, min(3, length) + 1):
        byte = raw[-back]
        if 0x80 <= byte < 0xC0:
            continue
        needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if needed > back:
            length -= back
        break
    while raw.endswith(b"\xef\xbf\xbd", 0, length):
        length -= 3
    return length


def _width(code: int) -> int:
    """Return how many bytes a decoded character takes."""
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:
        return 1
    return 2 if code < 0x800 else 3 if code < 0x10000 else 4
