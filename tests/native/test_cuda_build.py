"""The CUDA sources compile for every architecture of the wheels, and no kernel spills registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = ("80", "90", "100")
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("needs nvcc")
    known = subprocess.run([found, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if missing := [arch for arch in ARCHITECTURES if f"sm_{arch}" not in known]:
        pytest.skip(f"needs an nvcc that knows sm_{', sm_'.join(missing)}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(path.name for path in SOURCES.glob("*.cu")))
def test_no_kernel_spills(nvcc, source, tmp_path):
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command = [nvcc, "-std=c++17", *targets, "-Xptxas", "-v", "-c", SOURCES / source, "-o", tmp_path / "object.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = [match.groupdict() for match in KERNEL.finditer(done.stderr)]
    header = (SOURCES / f"{Path(source).stem}_kernel.cuh").read_text()
    names = re.findall(r"__global__[^(]*(?:\(\w+(?:, \d+)?\) )?void (\w+)\(", header)
    for arch in ARCHITECTURES:
        compiled = [kernel for kernel in kernels if kernel["arch"] == arch]
        assert names and all(any(name in kernel["name"] for kernel in compiled) for name in names)
        for kernel in compiled:
            assert kernel["stack"] == kernel["stores"] == kernel["loads"] == "0", kernel
