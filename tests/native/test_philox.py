from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.ragged import arange32, int32, random_keys
from scipy import stats

from mmbdhs.native import _extension, binding, reference

# counter, key, result: the known-answer vectors that Random123 publishes for philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    counter = np.array(counter, dtype=np.uint32)
    seed = key[0] | key[1] << 32
    native = np.empty(4, dtype=np.uint32)
    _extension.philox(counter.ctypes.data, seed, native.ctypes.data)
    assert tuple(native) == words
    assert tuple(reference.philox(counter, seed)) == words


def test_address_layout_is_one() -> None:
    assert _extension.address_layout() == reference.ADDRESS_LAYOUT


def test_address_words(implementation: ModuleType) -> None:
    """Each part of an address has its own bits of the counter or key."""
    seed, key, purpose, iteration, sentence = 0x0123456789ABCDEF, -0x123456789ABCDEF, 15, 4095, 65535
    got = implementation.random_uniform(seed, torch.tensor([key]), purpose, iteration, int32(sentence), 7)[0]
    high, low = divmod(key % 2**64, 2**32)
    blocks = [reference.philox(np.array([block, 0xFFFFFFFF, low, high], dtype=np.uint32), seed) for block in (0, 1)]
    assert got.tolist() == [word / 2**32 for word in np.concatenate(blocks)[:7].tolist()]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 31, 1134])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_uniform_backends_agree(n: int, count: int) -> None:
    arguments = (2**64 - 1, random_keys(n), reference.NOISE, 17, arange32(n), count)
    native, plain = binding.random_uniform(*arguments), reference.random_uniform(*arguments)
    assert native.shape == (n, count) and native.dtype == torch.float64
    assert torch.equal(native, plain)


def test_uniform_is_uniform(implementation: ModuleType) -> None:
    """Chi-square over 64 cells; false alarm with probability 1e-6 per run."""
    numbers = implementation.random_uniform(5, random_keys(100), reference.TOKEN, 0, arange32(100), 640).flatten()
    assert numbers.min() >= 0 and numbers.max() < 1
    cells = torch.histc(numbers, 64, 0, 1).numpy()
    assert stats.chisquare(cells).pvalue > 1e-6


def test_neighbouring_addresses_are_independent(implementation: ModuleType) -> None:
    """Rank correlation between draws whose addresses differ in one part; false alarm 6e-6 (six tests)."""
    keys, sentences, count = torch.arange(64), torch.zeros(64, dtype=torch.int32), 64

    def draw(seed: int = 1, shift: int = 0, purpose: int = 4, iteration: int = 3, sentence: int = 0) -> torch.Tensor:
        return implementation.random_uniform(
            seed, keys + shift, purpose, iteration, sentences + sentence, count
        ).flatten()

    others = [
        draw(seed=2),
        draw(seed=1 + 2**32),
        draw(shift=64),
        draw(purpose=5),
        draw(iteration=4),
        draw(sentence=1),
    ]
    for other in others:
        assert stats.spearmanr(draw(), other).pvalue > 1e-6
