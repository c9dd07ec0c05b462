"""The CUDA kernels' logic without a device: the same source, compiled for the CPU under a small emulator."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from ragged import int32, random_keys

from mmbdhs.native import reference

HERE = Path(__file__).parent
SIZES = (0, 1, 3, 4, 5, 31, 129, 511, 512, 513, 1134, 2047)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulated") / "image_mask.so"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")))
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", f"-I{HERE.parents[1] / 'csrc'}"]
    command = [*compiler.split(), *options, "-o", library, HERE / "emulated_image_mask.cpp"]
    subprocess.run(command, check=True, timeout=300)
    return ctypes.CDLL(str(library))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99, 1.0])
def test_visible_kernel(emulated, threshold):
    """Both turns of the kernel, with fewer blocks than examples."""
    seed, keys, tokens = 2**64 - 3, random_keys(len(SIZES)), int32(*SIZES)
    indices, offsets = reference.sample_visible(seed, keys, 6, tokens, threshold)
    counts = torch.full((len(SIZES),), -1, dtype=torch.int64)
    written = torch.full((len(indices) + 1,), -1, dtype=torch.int32)

    def run(*outputs: torch.Tensor | None) -> None:
        inputs = (ctypes.c_uint64(seed), pointer(keys), 6, pointer(tokens), ctypes.c_int64(len(SIZES)))
        words = ctypes.c_uint64(reference.visible_from(threshold))
        emulated.visible(*inputs, words, *map(pointer, outputs), 5)

    run(counts, None, None)
    assert torch.equal(counts, offsets.diff())
    run(None, offsets, written)
    assert torch.equal(written[:-1], indices) and written[-1] == -1
