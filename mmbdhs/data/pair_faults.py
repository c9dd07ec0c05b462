"""Pairs that teach nothing: what is wrong with the responses of one prompt."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby

from mmbdhs.data.messages import Messages, message_text

PAIR_FAULTS = ("identical", "garbled")
_REPEATS = 5  # of one word in a row


def pair_faults(responses: Sequence[str | Messages]) -> tuple[str, ...]:
    """What is wrong with the responses of a prompt, as names of `PAIR_FAULTS`; empty if nothing is.

    "identical": every other response says what the chosen one says, apart from white space and the form in which
    Unicode writes a character. The loss of such a pair has no gradient, or one that teaches nothing.

    "garbled": a response holds U+FFFD, which stands for broken characters, or the same word five times in a row, or
    fewer letters and digits than other signs.

    responses: the chosen one, then the others.
    """
    chosen, *others = map(_text, responses)
    identical = bool(others) and all(other == chosen for other in others)
    garbled = any(map(_is_garbled, (chosen, *others)))
    return tuple(name for name, found in zip(PAIR_FAULTS, (identical, garbled), strict=True) if found)


def _text(response: str | Messages) -> str:
    text = response if isinstance(response, str) else "\n".join(map(message_text, response))
    return " ".join(unicodedata.normalize("NFC", text).split())


def _is_garbled(text: str) -> bool:
    signs = text.replace(" ", "")
    words = sum(map(str.isalnum, signs))
    repeats = max((len(list(run)) for _, run in groupby(text.lower().split())), default=0)
    return "\ufffd" in text or 2 * words < len(signs) or repeats >= _REPEATS
