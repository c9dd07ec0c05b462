import random
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.ragged import flat
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmbdhs.native import binding, reference
from mmbdhs.native.sentence_rule import NO_STOP, SPACES, UNDECIDED

# Worked out by hand; "|" separates the spans.
CASES = [
    "",
    " ",
    " \n\t ",
    "cat",
    "A cat",
    "A cat. |A dog.",
    "A cat! |A dog? |A bird.",
    "A cat?! |A dog.",
    "A cat.A dog.",
    "  A cat.  |A dog. ",
    "The cat is 3.5 m long. |The dog is not.",
    "Pay $3.50. |Then go.",
    "See example.com for more. |Use node.js, or so.",
    "It is at example.com. |Go.",
    "Mr. Smith met Mrs. Jones. |Dr. Who left.",
    "Prof. Oak and St. Bernard, on Mt. Fuji.",
    "Cats vs. dogs, cf. Fig. 3 and eq. 4. |Done.",
    "A fruit, e.g. an apple. |That is, i.e. this.",
    "About approx. five.",
    "The U.S. Army in the U.K. and a Ph.D. student. |Ok.",
    "It is 5 p.m. now. |It is 5 p.m. |Now.",
    "It is 5 a.m.",
    "Cats, dogs, etc. are here. |Cats, dogs, etc. |They sleep.",
    "Apple Inc. is big. |He works at Apple Inc. |She does not.",
    "Sammy Davis Jr. sang. |Then Sammy Davis Jr. |He left.",
    "J. Smith and J. R. R. Tolkien. |So do I. |You too.",
    "No. |It is not.",
    "No. |5 is alive.",
    "Wait... what? |Wait... |What?",
    "Wait… what? |Wait… |What?",
    "Well.. |Yes.",
    "Hmm... |5 cats.",
    "Wait...what.",
    'He said "Stop." |Then he left.',
    "He said 'Stop!' |Then (he left.) |Then [he came.] |Ok.",
    'The sign says "Stop!" in red. |It says "Go." |It is green.',
    "A dog (is it a dog?) and a cat (it is one.) |Done. |**Bold.** and *thin.*",
    "“Stop.” |‘Go.’ |«Non.» |Ok.",
    "**A bold cat.** |_An italic dog._ |Done.",
    "It ends.), or not. |Yes.",
    "Stop.- no. |Stop.; no.",
    "A cat.\n|A dog.",
    "A cat\n|A dog",
    "A cat\r\n|A dog",
    "A cat \n\n  |A dog",
    "a\u2028|b\u2029|c\x85|d\x0b|e\x0c|f",
    "1. The cat\n|2. The dog. |3 birds.",
    "1. The cat.\n|12. The dog.\n|123. The bird.",
    "a. The cat\n|B. The dog\n|A) The bird. |End.",
    " - 1. The cat\n|**2. The dog.** |End.",
    "We have two. |2. |They are.",
    "It was 2020. |Then 2021.",
    "2020. |It was.",
    "Mr.\n|Smith",
    "It is Mr.",
    "U.S.\n|Army",
    "你好。|世界！|好吗？|好",
    "他说：「好。」|然后走了。 |好",
    "３．|５",
    "漢字.漢字。",
    "Ça va. |Élan. |Ω. |ж.",
    "Он ушёл... но вернулся. |Он ушёл... |Но нет.",
    "...",
    "... |Yes",
    ". |. |.",
    "?",
    "Yes",
    "A cat.\u00a0|A dog.\u3000|End",
    "😀. |😀! |ok",
    "x = 3. |y = 4.",
    "(See above). |Then.",
    "Plan I. |Go.",
]


ABBREVIATIONS = (
    "Mr Mrs Ms Mx Dr Prof St Mt Ft Gen Col Capt Lt Sgt Rev Hon Sen Rep Gov Messrs Mme Mlle "
    "vs cf approx ca viz resp fig figs Fig Figs eq eqs Eq Eqs vol Vol pp"
)
OFTEN_LAST = "etc Inc inc Ltd ltd Co Corp corp Jr Sr al a.m p.m A.M P.M"


def spans_of(implementation: ModuleType, text: str | bytes) -> list[bytes]:
    raw = text.encode() if isinstance(text, str) else text
    table, offsets = implementation.split_sentences(*flat([raw]))
    assert offsets.tolist() == [0, len(table)]
    bounds = [0, *table[:, 1].tolist()]
    return [raw[begin:end] for begin, end in pairwise(bounds)]


@pytest.mark.parametrize("case", CASES)
def test_worked_cases(implementation: ModuleType, case: str) -> None:
    text = case.replace("|", "")
    expected = [span.encode() for span in case.split("|")] if text else []
    assert spans_of(implementation, text) == expected


@pytest.mark.parametrize("word", ABBREVIATIONS.split())
def test_no_sentence_ends_after_an_abbreviation(implementation: ModuleType, word: str) -> None:
    assert spans_of(implementation, f"It is {word}. Then more.") == [f"It is {word}. Then more.".encode()]


@pytest.mark.parametrize("word", OFTEN_LAST.split())
def test_the_next_letter_decides_after_some_abbreviations(implementation: ModuleType, word: str) -> None:
    assert spans_of(implementation, f"It is {word}. then more.") == [f"It is {word}. then more.".encode()]
    assert spans_of(implementation, f"It is {word}. Then more.") == [f"It is {word}. ".encode(), b"Then more."]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes, it is.", "Yes"),
        ("yes it is.", "yes"),
        ("No.", "No"),
        (" \n no", "no"),
        ("No-one", "No"),
        ("Yes/no", "Yes"),
        ("No。", "No"),
        ("No“", "No"),
        ("NO.", ""),
        ("Not so.", ""),
        ("nothing", ""),
        ("Yes_", ""),
        ("yesé", ""),
        ("No猫", ""),
        ("No5", ""),
        ("(Yes)", ""),
        ("Ye", ""),
        ("N", ""),
        ("it is, yes", ""),
    ],
)
def test_leading_yes_or_no(implementation: ModuleType, text: str, word: str) -> None:
    content_end, span_end, begin, end = implementation.split_sentences(*flat([text]))[0][0].tolist()
    assert text.encode()[max(begin, 0) : max(end, 0)].decode() == word
    assert (begin < 0) == (end < 0) == (not word)
    assert content_end == span_end == len(text.encode())


def test_yes_or_no_of_a_later_sentence(implementation: ModuleType) -> None:
    table, _ = implementation.split_sentences(*flat(["It is. \n No. Yes"]))
    assert table.tolist() == [[6, 9, -1, -1], [12, 13, 9, 11], [16, 16, 13, 16]]


def test_rows_are_apart(implementation: ModuleType) -> None:
    table, offsets = implementation.split_sentences(*flat(["One. Two", "", "three. Four", " "]))
    assert offsets.tolist() == [0, 2, 2, 4, 5]
    assert table[:, 1].tolist() == [5, 8, 7, 11, 1]
    assert table[:, 0].tolist() == [4, 8, 6, 11, 0]


def test_more_sentences_than_first_guessed(implementation: ModuleType) -> None:
    assert len(spans_of(implementation, "a\n" * 1000)) == 1000


def test_no_text_at_all(implementation: ModuleType) -> None:
    table, offsets = implementation.split_sentences(*flat([]))
    assert table.shape == (0, 4) and offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "final", "expected"),
    [
        ("A cat", False, NO_STOP),
        ("A cat", True, 5),
        ("A cat ", True, 5),
        ("A cat.", False, UNDECIDED),
        ("A cat.", True, 6),
        ("A cat. ", False, 6),
        ("A cat.\n", False, 6),
        ("A cat\n", False, 5),
        ("It is 3.", False, UNDECIDED),
        ("It is 3.5", False, NO_STOP),
        ("Mr. ", False, NO_STOP),
        ("Mr.", True, 3),
        ("Wait... ", False, UNDECIDED),
        ("Wait...\n", False, 7),
        ("Wait... w", False, NO_STOP),
        ("Wait... W", False, 7),
        ("Cats etc. ", False, UNDECIDED),
        ("Cats etc. T", False, 9),
        ("猫。", False, UNDECIDED),
        ("猫。犬", False, 6),
        ('A "cat."', False, UNDECIDED),
        ('A "cat." ', False, UNDECIDED),
        ('A "cat." i', False, NO_STOP),
        ('A "cat." I', False, 8),
        (b"A cat." + b"\xe2\x80", False, UNDECIDED),
        (b"A cat. " + b"\xe2", False, 6),
        (b"Wait... " + b"\xd1", False, UNDECIDED),
        ("A cat.\ufffd", False, UNDECIDED),
        ("A cat. \ufffd", False, 6),
        ("Wait... \ufffd\ufffd", False, UNDECIDED),
        ("Wait... \ufffd", True, 7),
        ("Wait... \ufffd ", False, 7),
        ("\ufffd", False, NO_STOP),
        ("", False, NO_STOP),
        ("", True, 0),
        ("  ", False, NO_STOP),
        ("  ", True, 0),
    ],
)
def test_ends(implementation: ModuleType, text: str | bytes, final: bool, expected: Any) -> None:
    arguments = (*flat([text]), torch.tensor([0]), torch.tensor([final]))
    assert implementation.sentence_ends(*arguments).tolist() == [expected]


def test_end_looks_before_its_begin_for_the_line(implementation: ModuleType) -> None:
    """ "2. The" is a list item after a line break only."""
    text = "One.\n2. The cat. One. 2. The cat."
    arguments = (*flat([text] * 3), torch.tensor([5, 22, 33]), torch.tensor([True] * 3))
    assert implementation.sentence_ends(*arguments).tolist() == [16, 24, 33]


# The characters and words that the rule looks at, joined at random: they find more than characters from all of Unicode.
PIECES = [
    *".!?…。！？｡．\n\r\v\x85\u2028\u3000\xa0\"')]}*_”’»」』）】(-#>,\t",
    *(
        [
            "Mr",
            "e.g",
            "U.S",
            "etc",
            "Inc",
            "J",
            "I",
            "1",
            "12",
            "1234",
            "a",
            "p.m",
            "Ph.D",
            "the",
            "The",
            "No",
            "yes",
            "Yes",
            "no",
            "é",
            "Я",
            "я",
            "ß",
            "猫",
            "😀",
            "×",
            "..",
            "js",
            "\ufffd",
        ]
    ),
    *["."] * 6,
    *[" "] * 8,
]
RULE_TEXT = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
ANY_TEXT = st.one_of(RULE_TEXT, st.text(max_size=60)).map(str.encode)
ANY_BYTES = st.one_of(ANY_TEXT, st.binary(max_size=40), st.tuples(ANY_TEXT, st.binary(max_size=4)).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(st.lists(ANY_BYTES, max_size=4))
@example([b"\xf0\x90", b".\x80 A"])
def test_backends_agree_on_any_bytes(texts: list[bytes]) -> None:
    arguments = flat(texts)
    for native, plain in zip(binding.split_sentences(*arguments), reference.split_sentences(*arguments), strict=True):
        assert torch.equal(native, plain)
    begins = torch.tensor([len(text) // 2 for text in texts], dtype=torch.int64)
    for final in (False, True):
        ask = (*arguments, begins, torch.full((len(texts),), final))
        assert torch.equal(binding.sentence_ends(*ask), reference.sentence_ends(*ask))


@settings(max_examples=400, deadline=None)
@given(ANY_BYTES)
def test_spans_tile_the_text(raw: bytes) -> None:
    table = binding.split_sentences(*flat([raw]))[0]
    begin = 0
    for content_end, span_end, *_ in table.tolist():
        assert begin <= content_end <= span_end and begin < span_end
        content = raw[begin:content_end].decode(errors="replace")
        tail = raw[content_end:span_end].decode()
        assert all(ord(char) in SPACES for char in tail)
        assert not content or ord(content[-1]) not in SPACES
        begin = span_end
    assert begin == len(raw)


@settings(max_examples=300, deadline=None)
@given(ANY_BYTES)
def test_splitting_and_stopping_agree(raw: bytes) -> None:
    """A decoder that starts where a span begins finds the end of the same sentence."""
    table = binding.split_sentences(*flat([raw]))[0]
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), table[:, 1]])[:-1]
    texts = flat([raw] * len(table))
    whole = binding.sentence_ends(*texts, begins, torch.ones(len(table), dtype=torch.bool))
    assert torch.equal(whole, table[:, 0])


@settings(max_examples=300, deadline=None)
@given(ANY_BYTES)
@example("｡*\ufffd\ufffd1".encode())
def test_a_decided_end_never_moves(raw: bytes) -> None:
    count = len(raw) + 1
    prefixes = flat([raw[:length] for length in range(count)])
    zeros = torch.zeros(count, dtype=torch.int64)
    ends = binding.sentence_ends(*prefixes, zeros, zeros.bool()).tolist()
    final = binding.sentence_ends(*flat([raw]), zeros[:1], torch.tensor([True])).item()
    decided = [end for end in ends if end >= 0]
    first = next((i for i, end in enumerate(ends) if end >= 0), count)
    assert all(end >= 0 for end in ends[first:])
    assert set(decided) <= {final}


def test_long_runs_of_one_piece(implementation: ModuleType) -> None:
    for piece in ("a.", "...", " ", "e.g. ", "\n1. ", "*", "(1. ", "x"):
        text = piece * (20_000 // len(piece))
        assert b"".join(spans_of(implementation, text)) == text.encode()


def test_random_bytes_never_crash() -> None:
    generator = random.Random(0)
    for _ in range(300):
        raw = generator.randbytes(generator.randrange(200))
        assert spans_of(binding, raw) == spans_of(reference, raw)
