"""The attention ops on a device."""

import inspect
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import attention_truth as truth
from helpers.attention_cases import BROKEN, CASES, arguments_and_results, broken, masked, shared_prefix
from helpers.attention_truth import TOLERANCES, assert_close
from helpers.emulated import CHECK, SOURCES
from helpers.ragged import int32
from helpers.tools import cuda_tool

from mmbdhs.native import attention


def on_device(arguments: dict, device: str = "cuda") -> dict:
    """The same arguments with the same strides on a device."""
    moved = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            moved[name] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
            moved[name].copy_(value)
    return moved


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("op", "shape", "options"), CASES)
def test_cases(op: str, shape: tuple, options: dict, dtype: torch.dtype) -> None:
    arguments, expected = arguments_and_results(op, dtype, shape, options)
    assert_close(getattr(attention, op)(**on_device(arguments)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("op", "shape", "options"), BROKEN)
def test_broken_keys(op: str, shape: tuple, options: dict, dtype: torch.dtype) -> None:
    """A NaN or an infinity that only some rows of a tile see counts in these rows, and in no other."""
    arguments, expected = broken(op, dtype, shape, options)
    assert_close(getattr(attention, op)(**on_device(arguments)), expected)


@pytest.mark.gpu
def test_runs_on_the_callers_stream() -> None:
    """The same stream writes q after a pause: a launch on another stream would read it too early."""
    arguments, expected = masked(torch.float16, (1, (4, 2), 33, 129, 64))
    moved = on_device(arguments)
    q, moved["q"] = moved["q"], torch.zeros_like(moved["q"])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        moved["q"].copy_(q)
        got = attention.masked_attention(**moved)
    stream.synchronize()
    assert_close(got, expected)


@pytest.mark.gpu
def test_runs_on_the_tensors_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    arguments, expected = masked(torch.float16, (1, (4, 2), 33, 129, 64))
    got = attention.masked_attention(**on_device(arguments, "cuda:1"))
    assert got[0].device.index == 1 and torch.cuda.current_device() == 0
    assert_close(got, expected)


@pytest.mark.gpu
def test_captured_graph_follows_the_lengths() -> None:
    """One capture serves other lengths; numbers out of range, which capture cannot check, give NaN."""
    arguments = truth.random_shared_prefix(3, (4, 2), 128, 300, 40, torch.bfloat16)
    moved = on_device(arguments)
    attention.shared_prefix_attention(**moved)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = attention.shared_prefix_attention(**moved)
    for counts, lengths in [((300, 0, 7), (0, 40, 1)), ((1, 2, 3), (39, 0, 13))]:
        arguments["prefix_count"], arguments["suffix_length"] = int32(*counts), int32(*lengths)
        for name in ("prefix_count", "suffix_length"):
            moved[name].copy_(arguments[name])
        graph.replay()
        assert_close(got, truth.shared_prefix(arguments))
    moved["prefix_count"][1], moved["suffix_length"][2] = 301, -1
    graph.replay()
    assert got[0].isnan().flatten(1).all(1).tolist() == [False, True, True]
    assert got[1].isnan().all(1).tolist() == [False, True, True]


@pytest.mark.gpu
def test_opcheck() -> None:
    shared = on_device(shared_prefix(torch.float32, (3, (4, 2), 64, 31, 9), examples=2, gather=True)[0])
    order = inspect.signature(attention.shared_prefix_attention).parameters
    torch.library.opcheck(torch.ops.mmbdhs.shared_prefix_attention.default, tuple(map(shared.get, order)))
    hidden = on_device(masked(torch.float32, (2, (4, 2), 9, 31, 64), causal=True)[0])
    for name in ("q", "k", "v"):
        hidden[name] = hidden[name].nan_to_num().requires_grad_()
    torch.library.opcheck(torch.ops.mmbdhs.masked_attention.default, tuple(hidden.values()))


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs every kernel without torch, whose own memory and launches a sanitizer would watch too."""
    program = tmp_path_factory.mktemp("cuda") / "check"
    architecture = "-arch=sm_{}{}".format(*torch.cuda.get_device_capability())
    command = [cuda_tool("nvcc"), "-std=c++17", "-O2", "-lineinfo", architecture, f"-I{SOURCES}", *CHECK, "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.mark.gpu
@pytest.mark.slow
def test_check_without_torch(check: Path) -> None:
    done = subprocess.run([check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(check: Path, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", check, "quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
