import random
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.ragged import flat, spans_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmbdhs.native import binding, reference
from mmbdhs.native.sentence_rule import NO_STOP, UNDECIDED
from mmbdhs.native.sentence_tables import INVISIBLE, SPACES


def test_rows_are_apart(implementation: ModuleType) -> None:
    table, offsets = implementation.split_sentences(*flat(["One. Two", "", "three. Four", " "]))
    assert offsets.tolist() == [0, 2, 2, 4, 5]
    assert table[:, 1].tolist() == [5, 8, 7, 11, 1]
    assert table[:, 0].tolist() == [4, 8, 6, 11, 0]


def test_more_sentences_than_first_guessed(implementation: ModuleType) -> None:
    assert len(spans_of(implementation, "a\n" * 1000)) == 1000


def test_no_text_at_all(implementation: ModuleType) -> None:
    table, offsets = implementation.split_sentences(*flat([]))
    assert table.shape == (0, 5) and offsets.tolist() == [0]


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
        ("A cat.\u200b", False, UNDECIDED),
        ("A cat.\u200b ", False, 9),
        ("है।", False, UNDECIDED),
        ("है।\u200b", False, UNDECIDED),
        ("है।व", False, 9),
        ("؟،", False, NO_STOP),
        ("No.", False, UNDECIDED),
        ("No. ", False, UNDECIDED),
        ("No. \u200b<b>", False, UNDECIDED),
        ("No. 7", False, NO_STOP),
        ("No. I", False, 3),
        ("No.\n", False, 3),
        ("No. ", True, 3),
        ("1. ", False, NO_STOP),
        ("So: 1. ", False, NO_STOP),
        ("So 1. ", False, 5),
        ("<", False, UNDECIDED),
        ("<think>\n", False, NO_STOP),
        ("<think>\n", True, 0),
        ("A cat.<", False, UNDECIDED),
        ("A cat.<", True, 7),
        ("A cat.</", False, UNDECIDED),
        ("A cat.<b", False, UNDECIDED),
        ("A cat.<b>", False, 6),
        ("A cat.<5", False, NO_STOP),
        ("A cat.<b\n", False, 8),
        ("A cat <b. X", False, UNDECIDED),
        ("A cat <b. X<", False, 9),
        ("A cat <b. X>", False, NO_STOP),
        ("A cat <b. X>", True, 5),
        ("A cat.[/THIN", False, UNDECIDED),
        ("A cat.[/THINK]", False, 6),
        ("A cat.[/THING", False, NO_STOP),
        ("A cat.◁/think", False, UNDECIDED),
        ("A cat.◁/think▷", False, 6),
        ("是。<", False, 6),
        ("Wait...<b>", False, UNDECIDED),
        ("Wait...<b>W", False, 7),
        ("Mr.<b>", False, NO_STOP),
    ],
)
def test_ends(implementation: ModuleType, text: str | bytes, final: bool, expected: Any) -> None:
    assert implementation.sentence_ends(*flat([text]), torch.tensor([final])).tolist() == [expected]


# The characters and words that the rule looks at, joined at random: they find more than characters from all of Unicode.
WORD_PIECES = "Mr e.g U.S etc Inc J I 1 2 3 12 1234 a p.m Ph.D the The No Jan p yes Yes no é Я я ß 猫 😀 × .. js \ufffd"
TAG_PIECES = "<think> </b> <|x|> ◁think▷ [/THINK] < </ <a <a= |> > ◁ ▷ ◁/ [THI"
PIECES = [
    *".!?…。！？｡．।؟،‼\n\r\v\x85\u2028\u3000\xa0\"')]}*_”’»」』）】(-#>,:|[•\t\u200b\u200f\ufe0f\xad",
    *WORD_PIECES.split(),
    *TAG_PIECES.split(),
    *("x" * 33, "No. ", "1. ", "2. ", "1.1", "ii", "ft"),
    *("---", "```", "~~~py", "|-|-", "| ", "=", "+"),
    *["."] * 8,
    *[" "] * 12,
]
RULE_TEXT = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
ANY_TEXT = st.one_of(RULE_TEXT, st.text(max_size=60)).map(str.encode)
# The rule's tags, as bytes.
BREAK = rb"[\n\v\f\r]|\xc2\x85|\xe2\x80[\xa8\xa9]"
BRACKETS = [("<", ">"), ("◁", "▷")]
TAGS = [
    rb"%b/?[A-Za-z|](?:(?!%b|%b|%b)[\x00-\xff]){0,64}%b" % (a.encode(), BREAK, a.encode(), b.encode(), b.encode())
    for a, b in BRACKETS
]
TAG = re.compile(b"|".join([*TAGS, rb"\[/?THINK\]"]))
# A line of marks without its spaces.
MARKS = re.compile(r"[-*_=~`|:+#]{3,}|(```|~~~)[-*_=~`|:+#]*[^ ]*")
ANY_BYTES = st.one_of(ANY_TEXT, st.binary(max_size=40), st.tuples(ANY_TEXT, st.binary(max_size=4)).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(st.lists(ANY_BYTES, max_size=4))
@example([b"\xf0\x90", b".\x80 A"])
def test_backends_agree_on_any_bytes(texts: list[bytes]) -> None:
    arguments = flat(texts)
    for native, plain in zip(binding.split_sentences(*arguments), reference.split_sentences(*arguments), strict=True):
        assert torch.equal(native, plain)
    for final in (False, True):
        ask = (*arguments, torch.full((len(texts),), final))
        assert torch.equal(binding.sentence_ends(*ask), reference.sentence_ends(*ask))


@settings(max_examples=400, deadline=None)
@given(ANY_BYTES)
def test_spans_tile_the_text(raw: bytes) -> None:
    table = binding.split_sentences(*flat([raw]))[0]
    begin = 0
    for content_end, span_end, _, _, content_begin in table.tolist():
        assert begin <= content_begin <= content_end <= span_end and begin < span_end
        assert begin == 0 or begin == content_begin < content_end
        content = raw[content_begin:content_end]
        for gap in (raw[begin:content_begin], raw[content_end:span_end]):
            for line in re.split(BREAK, TAG.sub(b"", gap)):
                shown = "".join(char for char in line.decode() if ord(char) not in SPACES | INVISIBLE)
                assert not shown or MARKS.fullmatch(shown)
        ends = content.decode(errors="replace")
        assert not content or not {ord(ends[0]), ord(ends[-1])} & SPACES
        assert not TAG.match(content) and not any(tag.end() == len(content) for tag in TAG.finditer(content))
        begin = span_end
    assert begin == len(raw)


@settings(max_examples=300, deadline=None)
@given(ANY_BYTES)
def test_splitting_and_stopping_agree(raw: bytes) -> None:
    """A decoder that starts where a span begins finds the end of the same sentence."""
    table = binding.split_sentences(*flat([raw]))[0]
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), table[:, 1]])[:-1]
    rest = flat([raw[begin:] for begin in begins.tolist()])
    whole = binding.sentence_ends(*rest, torch.ones(len(table), dtype=torch.bool))
    assert torch.equal(begins + whole, table[:, 0])


@settings(max_examples=300, deadline=None)
@given(ANY_BYTES)
@example("｡*\ufffd\ufffd1".encode())
def test_a_decided_end_never_moves(raw: bytes) -> None:
    count = len(raw) + 1
    prefixes = flat([raw[:length] for length in range(count)])
    ends = binding.sentence_ends(*prefixes, torch.zeros(count, dtype=torch.bool)).tolist()
    final = binding.sentence_ends(*flat([raw]), torch.tensor([True])).item()
    decided = [end for end in ends if end >= 0]
    first = next((i for i, end in enumerate(ends) if end >= 0), count)
    assert all(end >= 0 for end in ends[first:])
    assert set(decided) <= {final}


def test_long_runs_of_one_piece(implementation: ModuleType) -> None:
    for piece in ("a.", "...", " ", "e.g. ", "\n1. ", "*", "(1. ", "x", "<", "<a", "No. ", "\u200b", "。", "<b>"):
        text = piece * (20_000 // len(piece))
        assert b"".join(spans_of(implementation, text)) == text.encode()


def test_random_bytes_never_crash() -> None:
    generator = random.Random(0)
    for _ in range(300):
        raw = generator.randbytes(generator.randrange(200))
        assert spans_of(binding, raw) == spans_of(reference, raw)
