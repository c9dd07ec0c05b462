from types import ModuleType

import pytest
import torch
from helpers.ragged import int32, random_keys, rows
from scipy import stats

from mmbdhs.native import binding, ops, reference

SIZES = (0, 1, 3, 4, 5, 31, 129, 1134)
THRESHOLDS = (0.0, 0.5, 0.99, 1.0)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("sizes", [(), *[(n,) for n in SIZES], SIZES, SIZES[::-1]])
def test_backends_agree(sizes: tuple[int, ...], threshold: float) -> None:
    arguments = (3, random_keys(len(sizes)), 2, int32(*sizes), threshold)
    (native, native_offsets), (plain, plain_offsets) = (
        module.sample_visible(*arguments) for module in (binding, reference)
    )
    assert native.dtype == torch.int32 and native_offsets.dtype == torch.int64
    assert torch.equal(native, plain) and torch.equal(native_offsets, plain_offsets)


def test_agrees_with_uniforms(implementation: ModuleType) -> None:
    """Eq. 6 by definition: token i is visible iff its uniform number is at least the threshold."""
    keys, sizes, threshold = random_keys(len(SIZES), seed=1), int32(*SIZES), 0.7
    indices, offsets = implementation.sample_visible(9, keys, 4, sizes, threshold)
    zeros = torch.zeros_like(sizes)
    uniforms = reference.random_uniform(9, keys, reference.IMAGE_MASK, 4, zeros, max(SIZES))
    for row, visible, size in zip(uniforms, rows(indices, offsets), SIZES, strict=True):
        assert visible.tolist() == (row[:size] >= threshold).nonzero().flatten().tolist()


def test_extreme_thresholds(implementation: ModuleType) -> None:
    sizes = int32(*SIZES)
    everything, offsets = implementation.sample_visible(0, random_keys(len(SIZES)), 0, sizes, 0.0)
    assert [row.tolist() for row in rows(everything, offsets)] == [list(range(n)) for n in SIZES]
    nothing, offsets = implementation.sample_visible(0, random_keys(len(SIZES)), 0, sizes, 1.0)
    assert nothing.tolist() == [] and offsets.tolist() == [0] * (len(SIZES) + 1)


def test_negative_counts(implementation: ModuleType) -> None:
    assert implementation.sample_visible(0, random_keys(3), 0, int32(5, -1, 7), 0.5) is None


def test_threshold_rounds_up() -> None:
    """The word k / 2^32 is visible at the threshold k / 2^32, and hidden just above it."""
    assert reference.visible_from(3 / 2**32) == 3
    assert reference.visible_from(3.000001 / 2**32) == 4
    assert reference.visible_from(1.0) == 2**32


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.98, 0.99])
def test_visible_share(implementation: ModuleType, threshold: float) -> None:
    """Exact binomial test of the share 1 - threshold; false alarm 1e-6 each."""
    sizes = torch.full((400,), 576, dtype=torch.int32)
    visible = len(implementation.sample_visible(11, random_keys(400), 0, sizes, threshold)[0])
    assert stats.binomtest(visible, 400 * 576, 1 - threshold).pvalue > 1e-6


def test_every_token_is_equally_likely(implementation: ModuleType) -> None:
    """Chi-square over 64 tokens; false alarm 1e-6."""
    sizes = torch.full((4000,), 64, dtype=torch.int32)
    indices, _ = implementation.sample_visible(12, random_keys(4000), 1, sizes, 0.9)
    assert stats.chisquare(torch.bincount(indices, minlength=64).numpy()).pvalue > 1e-6


def test_draws_depend_on_their_address_alone() -> None:
    keys, sizes = random_keys(8), int32(*SIZES)
    indices, offsets = ops.sample_visible(1, keys, 3, sizes, 0.5)
    together = rows(indices, offsets)
    for example in (7, 2, 5):
        alone, _ = ops.sample_visible(1, keys[example, None], 3, sizes[example, None], 0.5)
        assert torch.equal(alone, together[example])
    assert not torch.equal(ops.sample_visible(1, keys, 4, sizes, 0.5)[0], indices)
    assert not torch.equal(ops.sample_visible(2, keys, 3, sizes, 0.5)[0], indices)


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_cuda_agrees(threshold: float) -> None:
    keys, sizes = random_keys(100_000), torch.arange(100_000, dtype=torch.int32) % 700
    expected = ops.sample_visible(3, keys, 2, sizes, threshold)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        got = ops.sample_visible(3, keys.cuda(), 2, sizes.cuda(), threshold)
    stream.synchronize()
    for value, truth in zip(got, expected, strict=True):
        assert value.is_cuda and torch.equal(value.cpu(), truth)
