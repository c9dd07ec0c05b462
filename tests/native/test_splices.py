from types import ModuleType

import pytest
import torch
from helpers.ragged import arange32, flat, random_keys, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mmbdhs.native import SpliceDraws, Splices, binding, checks, ops, reference


def columns(count: int, swappable: bool = True, choices: int = 7, swapped_choices: int = 4) -> tuple[Tensor, ...]:
    """The columns of `draw_splices`, the same in each row."""
    full = [torch.full((count,), value, dtype=torch.int32) for value in (choices, swapped_choices)]
    return torch.full((count,), swappable), *full


@pytest.mark.parametrize("count", [0, 1, 5, 255, 256, 257, 1000])
def test_draws_agree(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    swappable = torch.rand(count, generator=generator) < 0.5
    ranges = [torch.randint(0, high, (count,), generator=generator, dtype=torch.int32) for high in (40, 2**31 - 1)]
    arguments = (2**63, random_keys(count), 4095, arange32(count), swappable, *ranges)
    (swapped, choice), (plain_swapped, plain_choice) = (
        module.draw_splices(SpliceDraws(*arguments)) for module in (binding, reference)
    )
    assert swapped.dtype == torch.bool and choice.dtype == torch.int32
    assert torch.equal(swapped, plain_swapped) and torch.equal(choice, plain_choice)


def test_draws_come_from_their_addresses(implementation: ModuleType) -> None:
    """ξ is item 0 of purpose SWAP, the cut item 0 of purpose CUT."""
    keys, sentences = random_keys(50), arange32(50)
    swapped, choice = implementation.draw_splices(SpliceDraws(8, keys, 3, sentences, *columns(50)))
    coin, cut = (
        reference.random_uniform(8, keys, purpose, 3, sentences, 1)[:, 0] for purpose in (reference.SWAP, reference.CUT)
    )
    assert torch.equal(swapped, coin >= 0.5)
    assert torch.equal(choice.long(), torch.where(swapped, (cut * 4).long(), (cut * 7).long()))


def test_empty_ranges(implementation: ModuleType) -> None:
    for choices, swapped_choices in ((0, 5), (5, 0), (0, 0)):
        draws = SpliceDraws(1, random_keys(64), 0, arange32(64), *columns(64, True, choices, swapped_choices))
        swapped, choice = implementation.draw_splices(draws)
        assert swapped.any() and not swapped.all()
        assert choices or not choice[~swapped].any()
        assert swapped_choices or not choice[swapped].any()


@pytest.mark.parametrize("column", [3, 5, 6])
@pytest.mark.parametrize("row", [0, 299, 300])
def test_draws_out_of_range(implementation: ModuleType, column: int, row: int) -> None:
    """A negative number is refused, whether or not the sentence makes use of it, and so is a sentence past the last."""
    numbers = [0, random_keys(301), 0, arange32(301), *columns(301)]
    numbers[column][row] = -1
    assert implementation.draw_splices(SpliceDraws(*numbers)) is None
    numbers[column][row] = 2**16
    assert (implementation.draw_splices(SpliceDraws(*numbers)) is None) == (column == 3)


def test_half_of_the_swappable_are_swapped(implementation: ModuleType) -> None:
    """Exact binomial test; false alarm 1e-6."""
    zeros = torch.zeros(20_000, dtype=torch.int32)
    swapped, _ = implementation.draw_splices(SpliceDraws(2, random_keys(20_000), 0, zeros, *columns(20_000)))
    assert stats.binomtest(int(swapped.sum()), 20_000, 0.5).pvalue > 1e-6
    draws = SpliceDraws(2, random_keys(1000), 0, arange32(1000), *columns(1000, swappable=False))
    assert not implementation.draw_splices(draws)[0].any()


def test_cuts_are_uniform(implementation: ModuleType) -> None:
    """Chi-square for kept and swapped sentences; false alarm 2e-6."""
    ones = torch.ones(20_000, dtype=torch.int32)
    swapped, choice = implementation.draw_splices(SpliceDraws(3, random_keys(20_000), 1, ones, *columns(20_000)))
    for of_kind, count in ((choice[~swapped], 7), (choice[swapped], 4)):
        cells = torch.bincount(of_kind, minlength=count)
        assert len(cells) == count and stats.chisquare(cells.numpy()).pvalue > 1e-6


def join(
    implementation: ModuleType, texts: list[str | bytes], swapped: list[bool], kept: list[int], completions: list[str]
) -> list[bytes]:
    text = flat(texts)
    spans = (*text, *implementation.split_sentences(*text))
    splices = Splices(*spans, torch.tensor(swapped, dtype=torch.bool), torch.tensor(kept), *flat(completions))
    return texts_of(*implementation.join_splices(splices))


def test_joins_by_hand(implementation: ModuleType) -> None:
    texts = ["Yes, a cat. A dog sits.\n", "", "no"]
    assert join(implementation, texts, [False, False, True], [4, 5, 3], [" a bird.", " runs.", ", it is"]) == [
        b"Yes, a bird. A dog runs.\n",
        b"",
        b"yes, it is",
    ]
    assert join(implementation, texts, [True, False, False], [10, 0, 0], ["!", "X", ""]) == [
        b"No, a cat.! X\n",
        b"",
        b"",
    ]
    assert join(implementation, ["  No. ", "Yes"], [True, True], [6, 1], ["-", "o"]) == [b"  Yes.- ", b"No"]


TEXTS = st.lists(
    st.lists(st.sampled_from(["Yes", "no", "No", ".", ". ", " ", "\n", "cat", "猫", "。", ","]), max_size=12).map(
        "".join
    ),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.data())
def test_join_backends_agree(texts: list[str], data: st.DataObject) -> None:
    text = flat(texts)
    table, offsets = binding.split_sentences(*text)
    swapped = (table[:, 2] >= 0) & torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))), dtype=torch.bool
    )
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), table[:, 1]])[:-1]
    begins[offsets[:-1][offsets.diff() > 0]] = 0
    grown = torch.where(swapped, torch.where(table[:, 3] - table[:, 2] == 3, -1, 1), 0)
    room = (table[:, 0] - begins + grown).tolist()
    kept = torch.tensor([data.draw(st.integers(0, most)) for most in room], dtype=torch.int64)
    completions = flat([data.draw(st.sampled_from(["", "x", " é."])) for _ in room])
    arguments = (*text, table, offsets, swapped, kept, *completions)
    native, plain = ops.join_splices(*arguments), reference.join_splices(Splices(*arguments))
    assert torch.equal(native[0], plain[0]) and torch.equal(native[1], plain[1])


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_keeping_everything_changes_nothing(texts: list[str]) -> None:
    text = flat(texts)
    table, offsets = ops.split_sentences(*text)
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), table[:, 1]])[:-1]
    begins[offsets[:-1][offsets.diff() > 0]] = 0
    nothing = flat([""] * len(table))
    unswapped = torch.zeros(len(table), dtype=torch.bool)
    joined = ops.join_splices(*text, table, offsets, unswapped, table[:, 0] - begins, *nothing)
    assert texts_of(*joined) == [text.encode() for text in texts]


def test_swapping_twice_changes_nothing(implementation: ModuleType) -> None:
    texts = ["Yes. no, it\nNo", "yes"]
    once = join(implementation, texts, [True, True, True, True], [3, 7, 3, 2], [""] * 4)
    assert once == [b"No. yes, it\nYes", b"no"]
    twice = join(implementation, once, [True, True, True, True], [4, 6, 2, 3], [""] * 4)
    assert twice == [text.encode() for text in texts]


@pytest.mark.parametrize(("word", "other"), [("Yes", "No"), ("yes", "no"), ("No", "Yes"), ("no", "yes")])
def test_every_answer_is_swapped_for_its_counterpart(implementation: ModuleType, word: str, other: str) -> None:
    assert join(implementation, [f"{word}, it is."], [True], [len(other) + 3], ["!"]) == [f"{other}, i!".encode()]


def test_int32_limits(implementation: ModuleType) -> None:
    top = 2**31 - 1
    draws = SpliceDraws(0, random_keys(9), 0, arange32(9), *columns(9, False, top, top))
    _, choice = implementation.draw_splices(draws)
    assert choice.min() >= 0 and choice.max() > 2**27


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_backends_refuse_what_the_checks_refuse(data: st.DataObject) -> None:
    """Compared over tables with up to two changed numbers, and offsets with one."""
    text = flat(["Yes, a cat. It sits.\n", "no", "", "A dog. No."])
    table, offsets = binding.split_sentences(*text)
    count = len(table)
    for _ in range(data.draw(st.integers(0, 2))):
        row, column = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))
        table[row, column] += data.draw(st.sampled_from([-3, -1, 1, 2, 100]))
    swapped = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    kept = torch.tensor(data.draw(st.lists(st.integers(-1, 9), min_size=count, max_size=count)))
    splices = Splices(*text, table, offsets, swapped, kept, *flat(["."] * count))
    moved = splices[data.draw(st.sampled_from([1, 3, 7]))]  # the offsets of texts, sentences and completions
    moved[data.draw(st.integers(0, len(moved) - 1))] += data.draw(st.sampled_from([0, 0, -1, 1, 100]))
    try:
        checks.splices(splices)
        fit = True
    except ValueError:
        fit = False
    joined = [module.join_splices(splices) for module in (binding, reference)]
    assert [pair is not None for pair in joined] == [fit, fit]
    assert not fit or all(torch.equal(native, plain) for native, plain in zip(*joined, strict=True))


@pytest.mark.parametrize("sentences", [7, 256, 257, 700])
def test_long_joins_agree(sentences: int) -> None:
    """Sentences and completions of many lengths, up to the last byte of their texts."""
    generator = torch.Generator().manual_seed(sentences)
    lengths = torch.randint(0, 200, (sentences,), generator=generator).tolist()
    text = flat(["Yes, " + "a" * length + ". " for length in lengths])
    table, offsets = binding.split_sentences(*text)
    swapped = torch.rand(sentences, generator=generator) < 0.5
    kept = (torch.rand(sentences, generator=generator) * (table[:, 0] - swapped.long() + 1)).long()
    completions = flat(["b" * length for length in lengths[::-1]])
    splices = Splices(*text, table, offsets, swapped, kept, *completions)
    for native, plain in zip(binding.join_splices(splices), reference.join_splices(splices), strict=True):
        assert torch.equal(native, plain)
