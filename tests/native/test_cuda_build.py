"""The CUDA sources compile for every architecture of the wheels, into the instructions that make them fast."""

import functools
import re
import subprocess
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from helpers.tools import cuda_tool, lacking

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
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
ATTENTION = ("shared_prefix_kernel", "masked_kernel")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P[T\d]+ +)?([A-Z][\w.]*)")
# What would separate copies: a wait, a barrier, a branch, or another access to memory. The loads of shared memory among
# the copies read nothing.
INTERRUPTION = re.compile(r"DEPBAR|LDGDEPBAR|BAR|BRA|LDG\.|LD\.|STS|STG|ST\.")


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = cuda_tool("nvcc")
    known = subprocess.run([found, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if missing := [arch for arch in ARCHITECTURES if f"sm_{arch}" not in known]:
        lacking("nvcc", f"an nvcc that knows sm_{', sm_'.join(missing)}")
    return found


@pytest.fixture(scope="module")
def compiled(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Path]]:
    """Compiles a source once. Returns the report of ptxas, and the folder with the machine code."""

    @functools.cache
    def compile_source(source: str) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("nvcc")
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
        options = ["-std=c++17", "-Xptxas", "-v", "--keep", "--keep-dir", folder, "-o", folder / "object.o"]
        command = [nvcc, *targets, *options, "-c", f"-I{SOURCES}", SOURCES / source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr, folder

    return compile_source


@pytest.mark.slow
@pytest.mark.parametrize(("source", "kernels"), KERNELS.items())
def test_registers(compiled: Callable[[str], tuple[str, Path]], source: str, kernels: dict[str, int]) -> None:
    """No kernel spills registers, and four blocks of the attention kernels have registers on a multiprocessor."""
    report, _ = compiled(source)
    found = [match.groupdict() for match in REPORT.finditer(report)]
    for arch in ARCHITECTURES:
        names = " ".join(kernel["name"] for kernel in found if kernel["arch"] == arch)
        assert {kernel: names.count(f"{len(kernel)}{kernel}") for kernel in kernels} == kernels
    for kernel in found:
        assert kernel["stack"] == kernel["stores"] == kernel["loads"] == "0", kernel
        assert int(kernel["registers"]) <= 128, kernel


def disassembled(cubin: Path) -> dict[str, list[str]]:
    """The instructions of each kernel, without operands."""
    command = [cuda_tool("nvdisasm"), "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bodies = (section.partition(":") for section in text.split("\n.text.")[1:])
    return {name: INSTRUCTION.findall(body) for name, _, body in bodies}


@pytest.mark.slow
def test_instructions(compiled: Callable[[str], tuple[str, Path]]) -> None:
    _, folder = compiled("attention/cuda/attention.cu")
    for arch in ARCHITECTURES:
        kernels = disassembled(folder / f"attention.compute_{arch}.cubin")
        attention = {name: code for name, code in kernels.items() if any(kernel in name for kernel in ATTENTION)}
        assert len(attention) == 18
        for name, code in attention.items():
            check_attention(f"sm_{arch}: {name}", code)
        combine = [code for name, code in kernels.items() if "combine_kernel" in name]
        assert len(combine) == 3
        for code in combine:
            # Four parts of a row are on their way at once.
            assert max(runs(code, "LDG.E.128", re.compile("BAR|BRA|ST"))) == 4
            assert "STG.E.128" in code and "STG.E.U16" not in code


def check_attention(name: str, code: list[str]) -> None:
    """Copies of a whole tile in a row, the next tile's before this one is multiplied, and results in wide stores."""
    element, width = re.search(r"I(f|6__half|13__nv_bfloat16)Li(\d+)E", name).groups()
    # 16 bytes of the tile's keys and of its values at a time: 8 KiB of each, or 4 KiB if rows are short.
    chunks = 4 if element != "f" and width == "64" else 8
    assert [count for count in runs(code, "LDGSTS.E.BYPASS.128", INTERRUPTION) if count > 1] == [chunks] * 2, name
    last_copy = max(at for at, instruction in enumerate(code) if instruction.startswith("LDGSTS"))
    waits = [at for at, instruction in enumerate(code) if instruction.startswith("DEPBAR")]
    multiplied = next(at for at, one in enumerate(code) if one.startswith("HMMA" if element != "f" else "FFMA"))
    assert len(waits) == 1 and waits[0] < last_copy, name
    if element != "f":
        assert last_copy < multiplied, name
    stores = [instruction for instruction in code if instruction.startswith("STG")]
    assert stores.count("STG.E") == 1 and set(stores) == {"STG.E", "STG.E.128"}, name  # an lse; everything else
    assert not any(instruction.startswith(("LDL", "STL")) for instruction in code), name


def runs(code: list[str], wanted: str, interruption: re.Pattern) -> list[int]:
    """How many wanted instructions come one after another each time, with no interruption."""
    marks = [one.startswith(wanted) for one in code if one.startswith(wanted) or interruption.match(one)]
    return [len(list(group)) for is_wanted, group in groupby(marks) if is_wanted]
