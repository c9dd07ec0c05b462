"""Where a sentence ends: the definition of the rule. csrc/text/sentences.cpp is the same rule in C++.

Text is UTF-8; a byte that belongs to no valid sequence counts as a letter. White space at the start of a sentence is
skipped. The sentence then ends at the first of these places:

1. Before a line break (LF, VT, FF, CR, U+0085, U+2028, U+2029).
2. After a run of stops . ! ? … and the closers (quotes, brackets, * and _) that follow it directly, if white space
   comes next. If anything else comes next (a letter, a digit, a comma), the run is part of the sentence.
3. After a run that holds a CJK stop 。！？｡．, and its closers, whatever comes next.
4. At the end of the text.

White space after the end belongs to the sentence before it, so that the spans of a text tile it. Rule 2 has exceptions:

- Three things end a sentence only if the next character that is not white space is no lower-case letter: an ellipsis
  (two dots or more, or …), stops with closers (It says "Stop!" in red), and abbreviations that often close a sentence
  (etc. Inc. p.m.).
- A single dot does not end the sentence after a title or reference (Mr. vs. Fig.), after letters joined by dots
  (U.S. Ph.D. e.g.), after one capital other than I (J. Smith), or after the number or letter of a list item that starts
  a line (1. The, a. The).

A stop at the very end of a text that may still grow is undecided: a decided end never moves when text is appended.
U+FFFD at the end of such a text stands for a character whose bytes have not all arrived, and is ignored.
"""

from __future__ import annotations

from itertools import accumulate

NO_STOP = -1
UNDECIDED = -2

_GO_ON, _END = 0, 1  # verdicts on one run of stops; UNDECIDED is the third

SPACES = frozenset([*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]) | frozenset(
    [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
)
BREAKS = frozenset([*range(0xA, 0xE), 0x85, 0x2028, 0x2029])
CJK_STOPS = frozenset(map(ord, "。！？｡．"))
STOPS = frozenset(map(ord, ".!?…")) | CJK_STOPS
CLOSERS = frozenset(map(ord, "\"')]}*_”’»」』）】"))
LOWER_RANGES = ((0x61, 0x7A), (0xDF, 0xF6), (0xF8, 0xFF), (0x3AC, 0x3CE), (0x430, 0x45F))
# From U+0080 on every character is part of a word, except in these ranges of punctuation, spaces and symbols.
NON_WORD_RANGES = (
    *((0x80, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x1680, 0x1680)),
    *(
        (0x2000, 0x206F),
        (0x2190, 0x2BFF),
        (0x2E00, 0x2E7F),
        (0x3000, 0x303F),
        (0xFE10, 0xFE1F),
        (0xFE30, 0xFE6F),
    ),
    *((0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0x1F000, 0x1FAFF)),
)
# Abbreviations after which a single dot never ends a sentence.
NEVER_FINAL = frozenset(
    b"Mr Mrs Ms Mx Dr Prof St Mt Ft Gen Col Capt Lt Sgt Rev Hon Sen Rep Gov Messrs Mme Mlle "
    b"vs cf approx ca viz resp fig figs Fig Figs eq eqs Eq Eqs vol Vol pp".split()
)
# Abbreviations that often stand at the end of a sentence: the next character decides.
OFTEN_FINAL = frozenset(b"etc Inc inc Ltd ltd Co Corp corp Jr Sr al a.m p.m A.M P.M".split())
LINE_LEAD = b" \t*#>(-"  # what may stand between the start of a line and the number of its list item
_BREAK_BYTES = tuple(chr(code).encode() for code in sorted(BREAKS))
# The answers of Algorithm 1 and what each is swapped for.
COUNTERPARTS = {b"Yes": b"No", b"yes": b"no", b"No": b"Yes", b"no": b"yes"}


def is_lower(code: int) -> bool:
    return any(low <= code <= high for low, high in LOWER_RANGES)


def is_word(code: int) -> bool:
    if code < 0x80:
        return code == 0x5F or chr(code).isalnum()
    return not any(low <= code <= high for low, high in NON_WORD_RANGES)


class _Scan:
    """The characters of raw[begin:end]: `codes`, and `at`, the byte where each one begins and the last one ends."""

    def __init__(self, raw: bytes, begin: int, end: int) -> None:
        # A stray byte b becomes U+DC00 + b, which is in no table, so it counts as a letter.
        self.codes = [ord(char) for char in raw[begin:end].decode("utf-8", "surrogateescape")]
        self.at = list(accumulate(map(_width, self.codes), initial=begin))
        self.raw = raw

    def skip(self, index: int, kind: frozenset[int]) -> int:
        while index < len(self.codes) and self.codes[index] in kind:
            index += 1
        return index


def split(raw: bytes) -> list[list[int]]:
    """Split one text into rows (content_end, span_end, word_begin, word_end); see `ops.split_sentences`."""
    scan, rows, begin = _Scan(raw, 0, len(raw)), [], 0
    while begin < len(scan.codes):
        content_end = _find_end(scan, begin, final=True)
        span_end = scan.skip(content_end, SPACES)
        rows.append([scan.at[content_end], scan.at[span_end], *_swap_word(scan, begin)])
        begin = span_end
    return rows


def end_of_sentence(raw: bytes, begin: int, final: bool) -> int:
    """Find the byte where the sentence that begins at byte `begin` ends, or return NO_STOP or UNDECIDED.

    See `ops.sentence_ends`.
    """
    limit = len(raw) if final else max(begin, _whole_length(raw))
    scan = _Scan(raw, begin, limit)
    end = _find_end(scan, 0, final)
    return end if end < 0 else scan.at[end]


def _find_end(scan: _Scan, first: int, final: bool) -> int:
    """Find the character before which the sentence that starts at `first` ends, or return a negative answer."""
    codes, content, token = scan.codes, first, -1
    index = scan.skip(first, SPACES)
    while index < len(codes):
        code = codes[index]
        if code in BREAKS:
            return content
        if code in STOPS:
            stop, run_end = index, scan.skip(index, STOPS)
            index = content = scan.skip(run_end, CLOSERS)
            verdict = _judge(scan, token, stop, run_end, index, final)
            if verdict != _GO_ON:
                return index if verdict == _END else UNDECIDED
            if not (index == stop + 1 and code == 0x2E and is_word(codes[index])):
                token = -1
            continue
        if not is_word(code):
            token = -1
        elif token < 0:
            token = index
        index += 1
        if code not in SPACES:
            content = index
    return content if final else NO_STOP


def _judge(scan: _Scan, token: int, stop: int, run_end: int, after: int, final: bool) -> int:
    """Whether the run of stops [stop, run_end) ends the sentence; its closers end at `after`."""
    codes = scan.codes
    if after == len(codes):
        return _END if final else UNDECIDED
    run = codes[stop:run_end]
    if not CJK_STOPS.isdisjoint(run):
        return _END
    if codes[after] not in SPACES:
        return _GO_ON
    by_case = after > run_end
    if run == [0x2E]:
        word = scan.raw[scan.at[token] : scan.at[stop]] if token >= 0 else b""
        if word not in OFTEN_FINAL and _never_ends(scan, token, word):
            return _GO_ON
        by_case |= word in OFTEN_FINAL
    else:
        by_case |= all(code in (0x2E, 0x2026) for code in run)
    return _judge_by_case(scan, after, final) if by_case else _END


def _judge_by_case(scan: _Scan, after: int, final: bool) -> int:
    following = scan.skip(after, SPACES - BREAKS)
    if following == len(scan.codes):
        return _END if final else UNDECIDED
    return _GO_ON if is_lower(scan.codes[following]) else _END


def _never_ends(scan: _Scan, token: int, word: bytes) -> bool:
    if word in NEVER_FINAL or (len(word) == 1 and word.isupper() and word != b"I"):
        return True
    parts = word.split(b".")
    if len(parts) > 1:
        return all(len(part) in (1, 2) and part.isalpha() for part in parts)
    return _is_list_mark(word) and _starts_line(scan.raw[: scan.at[token]])


def _is_list_mark(word: bytes) -> bool:
    return (word.isdigit() and len(word) <= 3) or (word.isalpha() and len(word) == 1)


def _starts_line(before: bytes) -> bool:
    before = before.rstrip(LINE_LEAD)
    return not before or before.endswith(_BREAK_BYTES)


def _swap_word(scan: _Scan, first: int) -> tuple[int, int]:
    """Find the bytes of the leading yes or no, by the regular expression of Algorithm 1; (-1, -1) if there is none."""
    begin = scan.skip(first, SPACES)
    for word in COUNTERPARTS:
        end = begin + len(word)
        whole = end == len(scan.codes) or (end < len(scan.codes) and not is_word(scan.codes[end]))
        if whole and scan.codes[begin:end] == list(word):
            return scan.at[begin], scan.at[end]
    return -1, -1


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
