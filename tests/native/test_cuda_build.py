"""The CUDA sources compile for every architecture of the wheels, and no kernel spills registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.tools import lacking

SOURCES = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = ("80", "90", "100")
KERNELS = {  # how often each is compiled: for element types and head sizes
    "attention/cuda/attention.cu": {
        "shared_prefix_kernel": 9,
        "masked_kernel": 9,
        "combine_kernel": 3,
        "list_visible_kernel": 1,
    },
    "image_mask/image_mask.cu": {"visible_kernel": 1},
}
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc") or lacking("nvcc", "nvcc")
    known = subprocess.run([found, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if missing := [arch for arch in ARCHITECTURES if f"sm_{arch}" not in known]:
        lacking("nvcc", f"an nvcc that knows sm_{', sm_'.join(missing)}")
    return found


@pytest.fixture(scope="module")
def compiled(nvcc: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The report of ptxas for one source, and the folder with its PTX."""
    folder = tmp_path_factory.mktemp("nvcc")
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    options = ["-std=c++17", "-Xptxas", "-v", "--keep", "--keep-dir", folder, "-o", folder / "object.o"]
    command = [nvcc, *targets, *options, "-c", f"-I{SOURCES}", SOURCES / request.param]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr, folder


@pytest.mark.slow
@pytest.mark.parametrize(("compiled", "kernels"), KERNELS.items(), indirect=["compiled"])
def test_kernels(compiled: tuple[str, Path], kernels: dict[str, int]) -> None:
    """No kernel spills registers, and rows are read 16 bytes at a time, never byte by byte."""
    report, folder = compiled
    found = [match.groupdict() for match in REPORT.finditer(report)]
    for arch in ARCHITECTURES:
        names = " ".join(kernel["name"] for kernel in found if kernel["arch"] == arch)
        assert {kernel: names.count(f"{len(kernel)}{kernel}") for kernel in kernels} == kernels
    for kernel in found:
        assert kernel["stack"] == kernel["stores"] == kernel["loads"] == "0", kernel
    texts = list(folder.glob("*.ptx"))
    assert len(texts) == len(ARCHITECTURES)
    for path in texts:
        for name, body in re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", path.read_text(), re.DOTALL):
            if "shared_prefix_kernel" in name or "masked_kernel" in name:
                assert "ld.global.v4" in body and "ld.global.u8" not in body, f"{path.name}: {name}"
