"""The CUDA kernels and their launches without a device: the same sources, compiled for the CPU under an emulator."""

import ctypes
import re

import pytest
import torch
from attention_truth import (
    TOLERANCES,
    assert_close,
    masked_arguments,
    masked_truth,
    shared_prefix_arguments,
    shared_prefix_truth,
)
from emulated import SCHEDULES, SOURCES, Extension, build, guarded, pointer
from ragged import int32, random_keys

from mmbdhs.native import binding, reference

INT_MAX = 2**31 - 1
SIZES = (0, 1, 3, 4, 5, 31, 129, 511, 512, 513, 1134, 2047)

# branches, (query heads, key heads), head size, prefix keys, suffix keys; options
SHARED_PREFIX = [
    ((1, (1, 1), 32, 1, 1), {}),
    ((3, (8, 2), 64, 129, 0), {"spare": 8}),
    ((5, (7, 1), 72, 31, 129), {"spare": 1, "softcap": 2.0}),
    ((9, (8, 1), 256, 129, 5), {"shuffled": True}),
    ((8, (2, 2), 128, 1134, 31), {"spare": 8, "shuffled": True, "examples": 3}),
    ((6, (16, 4), 40, 300, 31), {"examples": 5, "softcap": 30.0}),
    ((2, (80, 2), 96, 31, 33), {}),
    ((2, (2, 1), 128, 0, 9), {}),
    ((3, (2, 2), 64, 0, 0), {}),
    ((0, (2, 2), 64, 5, 5), {}),
]

# batch, (query heads, key heads), queries, keys, head size; options
MASKED = [
    ((1, (1, 1), 1, 1, 32), {"share": 1.0}),
    ((2, (8, 2), 31, 129, 64), {"causal": True, "spare": 8}),
    ((2, (7, 1), 9, 31, 72), {"spare": 1, "softcap": 2.0}),
    ((1, (4, 4), 33, 1134, 128), {"causal": True, "share": 0.1}),
    ((3, (8, 1), 5, 2047, 256), {"share": 0.01}),
    ((2, (2, 2), 40, 40, 256), {"causal": True, "softcap": 30.0}),
    ((2, (2, 1), 3, 129, 96), {"share": 0.0}),
    ((1, (2, 2), 3, 0, 64), {}),
    ((1, (2, 2), 0, 3, 64), {}),
    ((0, (2, 2), 3, 3, 64), {}),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(library, monkeypatch) -> Extension:
    """The emulator behind `binding`, whose attention functions then run the CUDA launchers on CPU tensors."""
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


def check_shared_prefix(dtype: torch.dtype, shape: tuple, options: dict) -> None:
    torch.manual_seed(0)
    arguments = shared_prefix_arguments(dtype, *shape, **options)
    assert_close(binding.shared_prefix_attention(**arguments), shared_prefix_truth(**arguments))


def check_masked(dtype: torch.dtype, shape: tuple, options: dict) -> None:
    torch.manual_seed(0)
    arguments = masked_arguments(dtype, *shape, **options)
    assert_close(binding.masked_attention(**arguments), masked_truth(**arguments))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
def test_visible(emulated, threshold, schedule):
    emulated.schedule(schedule)
    check_visible(emulated, threshold)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("shape", "options"), SHARED_PREFIX)
def test_shared_prefix(emulated, shape, options, dtype, schedule):
    emulated.schedule(schedule)
    check_shared_prefix(dtype, shape, options)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("shape", "options"), MASKED)
def test_masked(emulated, shape, options, dtype, schedule):
    emulated.schedule(schedule)
    check_masked(dtype, shape, options)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        *[("prefix_count", 1, value) for value in (-1, -INT_MAX - 1, INT_MAX)],
        *[("suffix_length", 2, value) for value in (-1, -INT_MAX - 1, 10, INT_MAX)],
        *[("example", 3, value) for value in (-1, -INT_MAX - 1, 3, INT_MAX)],
        *[("prefix_offsets", 1, value) for value in (-1, INT_MAX)],
        ("prefix_offsets", 3, 41),
        *[("visible", 0, value) for value in (-1, 43, -INT_MAX - 1, INT_MAX)],
    ],
)
def test_numbers_out_of_range(emulated, name, row, value, dtype):
    """Nothing checks them while a graph is captured: the branches concerned come back as NaN, the others right."""
    torch.manual_seed(1)
    arguments = shared_prefix_arguments(dtype, 7, (4, 2), 64, 40, 9, examples=3, shuffled=True)
    example, offsets, count = (arguments[key] for key in ("example", "prefix_offsets", "prefix_count"))
    example[:], offsets[:] = int32(0, 1, 2, 0, 1, 2, 0), int32(0, 11, 25, 40)
    count[:] = int32(11, 14, 15, 3, 0, 7, 0)
    branches = {
        "visible": (offsets[example.long()] == 0) & (count > 0),
        "prefix_offsets": (example == row) | (example == row - 1),
    }.get(name, torch.arange(7) == row)
    out, lse = shared_prefix_truth(**arguments)
    out[branches], lse[branches] = torch.nan, torch.nan
    arguments[name][row] = value
    assert_close(binding.shared_prefix_attention(**arguments), (out, lse))


def test_count_beyond_its_example(emulated):
    """The next example's keys are there, but not the branch's to see."""
    arguments = shared_prefix_arguments(torch.float32, 2, (2, 2), 64, 40, 9, examples=2)
    arguments["example"][:], arguments["prefix_offsets"][1] = 0, 20
    arguments["prefix_count"][:] = int32(21, 20)
    out, lse = binding.shared_prefix_attention(**arguments)
    assert out[0].isnan().all() and lse[0].isnan().all() and not out[1].isnan().any()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("leaves_early", "leaves_early: CUDA launch failed: a barrier was never completed"),
        ("parts_ways", "parts_ways: CUDA launch failed: threads wait at different barriers"),
        ("overruns", "overruns: CUDA launch failed: shared memory was written past its end"),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_emulator_notices(emulated, kernel, message, schedule):
    emulated.schedule(schedule)
    with pytest.raises(RuntimeError, match=message):
        emulated.launch(f"run_{kernel}")


def barriers() -> list[str]:
    """The places "file:line" of all barriers in the kernels."""
    files = {path.name: path.read_text().splitlines() for path in sorted(SOURCES.glob("*.cuh"))}
    pattern = re.compile(r"__sync(threads|warp)\b")
    return [f"{name}:{n}" for name, lines in files.items() for n, line in enumerate(lines, 1) if pattern.search(line)]


def is_caught(emulated: Extension) -> bool:
    """Do results differ, or launches fail, under some schedule?"""
    for schedule in SCHEDULES:
        emulated.schedule(schedule)
        try:
            check_visible(emulated, 0.5)
            for dtype in (torch.float32, torch.float16):
                check_shared_prefix(dtype, (5, (2, 1), 64, 129, 9), {})
                check_masked(dtype, (1, (2, 1), 3, 1134, 64), {"causal": True})
        except (AssertionError, RuntimeError):
            return True
    return False


@pytest.mark.parametrize("place", ["", *barriers()])
def test_every_barrier_is_needed(emulated, place):
    emulated.remove_barrier(place)
    assert is_caught(emulated) == bool(place)
