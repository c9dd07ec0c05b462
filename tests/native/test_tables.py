"""The tables and numbers that C++ and Python both hold, compared entry by entry."""

from collections.abc import Callable

import pytest
import torch

from mmbdhs.native import _extension, binding, sentence_rule

UNICODE = 0x110000

KINDS: dict[str, Callable[[int], bool]] = {
    "is_space": sentence_rule.SPACES.__contains__,
    "is_break": sentence_rule.BREAKS.__contains__,
    "is_stop": sentence_rule.STOPS.__contains__,
    "is_cjk_stop": sentence_rule.CJK_STOPS.__contains__,
    "is_closer": sentence_rule.CLOSERS.__contains__,
    "is_lower": sentence_rule.is_lower,
    "is_word": sentence_rule.is_word,
}


def test_words() -> None:
    tables = _extension.word_tables()
    assert set(tables) == {"never_final", "often_final", "line_lead", "answers", "counterparts"}
    for name, words in (("never_final", sentence_rule.NEVER_FINAL), ("often_final", sentence_rule.OFTEN_FINAL)):
        assert sorted(tables[name]) == sorted(word.decode() for word in words)
    assert tables["line_lead"] == [sentence_rule.LINE_LEAD.decode()]
    pairs = zip(tables["answers"], tables["counterparts"], strict=True)
    assert [(word.encode(), other.encode()) for word, other in pairs] == list(sentence_rule.COUNTERPARTS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_characters(kind: str) -> None:
    """Over all of Unicode; a byte that belongs to no character stands among the surrogates."""
    native, plain = getattr(_extension, kind), KINDS[kind]
    assert [code for code in range(UNICODE) if native(code) != plain(code)] == []
    assert any(map(plain, range(UNICODE)))


def test_answers_of_sentence_ends() -> None:
    assert (_extension.NO_STOP, _extension.UNDECIDED) == (sentence_rule.NO_STOP, sentence_rule.UNDECIDED)


def test_dtypes() -> None:
    assert set(binding._DTYPES) == {torch.float32, torch.bfloat16, torch.float16}
    assert len(set(binding._DTYPES.values())) == 3
