"""The tables and numbers that C++ and Python both hold."""

import unicodedata

import pytest
import regex
import torch

from mmbdhs.native import _extension, binding, sentence_rule, sentence_tables

UNICODE = 0x110000


@pytest.mark.parametrize("kind", sentence_tables.KINDS)
def test_characters(kind: str) -> None:
    """Over all of Unicode; a byte that belongs to no character stands among the surrogates."""
    bit = 1 << list(sentence_tables.KINDS).index(kind)
    native = {code for code in range(UNICODE) if _extension.kinds_of(code) & bit}
    assert native == sentence_tables.KINDS[kind] and native


@pytest.mark.parametrize(
    ("table", "marks", "unicode"),
    [
        (sentence_tables.SPACES, "", r"\p{White_Space}"),
        (sentence_tables.INVISIBLE, "", r"\p{Default_Ignorable_Code_Point}"),
        (sentence_tables.STOPS, ".…．", r"\p{Sentence_Break=STerm}"),
    ],
)
def test_tables_that_unicode_defines(table: frozenset[int], marks: str, unicode: str) -> None:
    """Each is what Unicode says, and some marks besides: of the characters that this Python knows, because a later
    Unicode may have more."""
    known = "".join(char for char in map(chr, range(UNICODE)) if unicodedata.category(char) not in ("Cn", "Cs"))
    assert table & set(map(ord, known)) == {*map(ord, marks), *map(ord, regex.findall(unicode, known))}


def test_answers_of_sentence_ends() -> None:
    assert (_extension.NO_STOP, _extension.UNDECIDED) == (sentence_rule.NO_STOP, sentence_rule.UNDECIDED)


def test_dtypes() -> None:
    assert set(binding._DTYPES) == {torch.float32, torch.bfloat16, torch.float16}
    assert len(set(binding._DTYPES.values())) == 3
