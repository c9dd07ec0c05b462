"""The CUDA kernels and their launches without a device: the same sources, compiled for the CPU under an emulator."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import attention_truth as truth
from helpers.attention_cases import BROKEN, CASES, Case, arguments_and_results, broken, shared_prefix, weightless
from helpers.attention_truth import TOLERANCES, assert_close
from helpers.emulated import SCHEDULES, Extension, barriers, build, guarded, pointer
from helpers.ragged import int32, random_keys

from mmbdhs.native import Masked, SharedPrefix, binding, reference

INT_MAX = 2**31 - 1
SIZES = (0, 1, 3, 4, 5, 31, 129, 511, 512, 513, 1134, 2047)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Extension:
    """The emulator in place of the extension: `binding` then runs the CUDA launchers on CPU tensors."""
    monkeypatch.setattr(binding, "_extension", Extension(library))
    return binding._extension


def check_visible(emulated: Extension, threshold: float) -> None:
    seed, keys, tokens = 2**64 - 3, random_keys(len(SIZES)), int32(*SIZES)
    indices, offsets = reference.sample_visible(seed, keys, 6, tokens, threshold)
    inputs = (ctypes.c_uint64(seed), pointer(keys), 6, pointer(tokens), ctypes.c_int64(len(SIZES)))
    words = ctypes.c_uint64(reference.visible_from(threshold))
    with guarded(8 * len(SIZES)) as counts, guarded(4 * len(indices)) as written:
        emulated.launch("count_visible", *inputs, words, pointer(counts))
        assert torch.equal(counts.view(torch.int64), offsets.diff())
        emulated.launch("write_visible", *inputs, words, pointer(offsets), pointer(written))
        assert torch.equal(written.view(torch.int32), indices)


def check_attention(op: str, dtype: torch.dtype, *rest: Any, case: Callable[..., Case] = arguments_and_results) -> None:
    arguments, expected = case(op, dtype, *rest)
    operands = {"shared_prefix_attention": SharedPrefix, "masked_attention": Masked}[op](**arguments)
    assert_close(getattr(binding, op)(operands), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
def test_visible(emulated: Extension, threshold: float, schedule: str) -> None:
    emulated.schedule(schedule)
    check_visible(emulated, threshold)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("op", "shape", "options"), CASES)
def test_attention(
    emulated: Extension, op: str, shape: tuple, options: dict, dtype: torch.dtype, schedule: str
) -> None:
    emulated.schedule(schedule)
    check_attention(op, dtype, shape, options)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("op", "shape", "options"), BROKEN)
def test_broken_keys(emulated: Extension, op: str, shape: tuple, options: dict, dtype: torch.dtype) -> None:
    """A NaN or an infinity that only some rows of a tile see counts in these rows, and in no other."""
    check_attention(op, dtype, shape, options, case=broken)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("bad", "good"), [(0, 299), (299, 0), (4, 5)])
@pytest.mark.parametrize("op", ["shared_prefix_attention", "masked_attention"])
def test_broken_value_without_weight(emulated: Extension, op: str, bad: int, good: int, dtype: torch.dtype) -> None:
    """A visible key counts even where its weight rounds to 0."""
    check_attention(op, dtype, bad, good, case=weightless)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        *[("prefix_count", 1, value) for value in (-1, -INT_MAX - 1, 15, INT_MAX)],
        *[("suffix_length", 2, value) for value in (-1, -INT_MAX - 1, 10, INT_MAX)],
        *[("example", 3, value) for value in (-1, -INT_MAX - 1, 3, INT_MAX)],
        *[("prefix_offsets", 1, value) for value in (-1, INT_MAX)],
        ("prefix_offsets", 3, 41),
        *[("visible", 0, value) for value in (-1, 60, -INT_MAX - 1, INT_MAX)],
    ],
)
def test_numbers_out_of_range(emulated: Extension, name: str, row: int, value: int, dtype: torch.dtype) -> None:
    """Nothing checks them while a graph is captured: the branches concerned become NaN, the others stay right."""
    arguments, _ = shared_prefix(dtype, (7, (4, 2), 64, 60, 9), examples=3, gather=True)
    example, offsets, count = (arguments[key] for key in ("example", "prefix_offsets", "prefix_count"))
    example[:], offsets[:] = int32(0, 1, 2, 0, 1, 2, 0), int32(0, 11, 25, 40)
    count[:] = int32(11, 14, 15, 3, 0, 7, 0)
    wrong = {
        "visible": (offsets[example.long()] == 0) & (count > 0),
        "prefix_offsets": (example == row) | (example == row - 1),
    }.get(name, torch.arange(7) == row)
    out, lse = truth.shared_prefix(arguments)
    out[wrong], lse[wrong] = torch.nan, torch.nan
    arguments[name][row] = value
    assert_close(binding.shared_prefix_attention(SharedPrefix(**arguments)), (out, lse))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_nothing_to_do(emulated: Extension, dtype: torch.dtype) -> None:
    keys = torch.zeros(2, 5, 64, dtype=dtype)
    none, nowhere = int32(), torch.zeros(0, 2, 5, 64, dtype=dtype)
    shared = SharedPrefix(nowhere[:, :, 0], keys, keys, none, nowhere, nowhere, none)
    assert [len(result) for result in binding.shared_prefix_attention(shared)] == [0, 0]
    for q, k in ((nowhere, nowhere), (keys[None, :, :0], keys[None])):
        visible = torch.ones(len(k), 5, dtype=torch.bool)
        assert binding.masked_attention(Masked(q, k, k, visible))[0].shape == q.shape


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("leaves_early", "leaves_early: CUDA launch failed: a barrier was never completed"),
        ("parts_ways", "parts_ways: CUDA launch failed: threads wait at different barriers"),
        ("overruns", "overruns: CUDA launch failed: shared memory was written past its end"),
        ("slips", "slips: CUDA launch failed: a wide access is not aligned"),
        ("strays", "strays: CUDA launch failed: an address is nobody's"),
        ("takes_much", "more shared memory than the kernel was allowed"),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_emulator_notices(emulated: Extension, kernel: str, message: str, schedule: str) -> None:
    emulated.schedule(schedule)
    with pytest.raises(RuntimeError, match=message):
        emulated.launch(f"run_{kernel}")


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [0, 1, 2])
def test_blocks_that_fit_a_multiprocessor(library: ctypes.CDLL, dtype: int, head_dim: int) -> None:
    """Four on sm_90 and sm_100, three on sm_80, by shared memory; a block takes 1 KiB more than it asks for."""
    block = library.shared_memory_of(ctypes.c_int64(dtype), ctypes.c_int64(head_dim)) + 1024
    assert 4 * block <= 228 * 1024 and 3 * block <= 164 * 1024


@pytest.mark.parametrize("counts", [[100] * 13, [1], [31, 32, 33, 64, 1, 1000], [7] * 32, []])
@pytest.mark.parametrize("blocks", [1, 2, 6, 128])
def test_tiles_are_dealt_round(library: ctypes.CDLL, counts: list[int], blocks: int) -> None:
    """Every tile of every example has one block, and no block has two tiles more than another."""
    wanted = [(segment, first) for segment, count in enumerate(counts) for first in range(0, count, 32)]
    lengths, dealt = int32(*counts), []
    for index in range(blocks):
        pairs = torch.empty(len(wanted) + 1, 2, dtype=torch.int32)
        taken = library.tiles_of_block(pointer(lengths), len(counts), index, blocks, pointer(pairs))
        dealt.append([tuple(pair) for pair in pairs[:taken].tolist()])
    assert sorted(tile for tiles in dealt for tile in tiles) == wanted
    sizes = [len(tiles) for tiles in dealt]
    assert max(sizes) - min(sizes) <= 1


def is_caught(emulated: Extension) -> bool:
    """Do results differ, or launches fail, under some schedule?"""
    for schedule in SCHEDULES:
        emulated.schedule(schedule)
        try:
            check_visible(emulated, 0.5)
            for dtype in (torch.float32, torch.float16):
                check_attention("shared_prefix_attention", dtype, (5, (2, 1), 64, 129, 9), {})
                check_attention("masked_attention", dtype, (1, (2, 1), 3, 1134, 64), {"causal": True})
                check_attention(BROKEN[0][0], dtype, *BROKEN[0][1:], case=broken)
        except (AssertionError, RuntimeError):
            return True
    return False


@pytest.mark.parametrize("place", ["", *barriers()])
def test_every_barrier_is_needed(emulated: Extension, place: str) -> None:
    emulated.remove_barrier(place)
    assert is_caught(emulated) == bool(place)
