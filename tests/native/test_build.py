"""The build chooses between CPU and CUDA, and says so in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest
from helpers.tools import lacking

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "cmake"


def configure(build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    fixed = (f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}")
    command = [CMAKE, "-S", ROOT, "-B", build, f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}", *fixed, *options]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def announcements(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stdout.splitlines() if "mmbdhs:" in line]


def test_cuda_off(tmp_path: Path) -> None:
    """`.ci/run` builds a wheel so, and checks what it holds."""
    done = configure(tmp_path, "-DMMBDHS_CUDA=off")
    assert done.returncode == 0, done.stderr
    assert announcements(done) == ["-- mmbdhs: CPU build (MMBDHS_CUDA=off)"]


def test_without_cuda_compiler(tmp_path: Path) -> None:
    missing = {"CUDACXX": str(tmp_path / "no-nvcc")}
    done = configure(tmp_path / "auto", "-DMMBDHS_CUDA=auto", **missing)
    assert done.returncode == 0, done.stderr
    assert announcements(done) == ["-- mmbdhs: CPU build (no working CUDA compiler was found)"]
    done = configure(tmp_path / "on", "-DMMBDHS_CUDA=on", **missing)
    assert done.returncode != 0
    assert "MMBDHS_CUDA=on needs a working CUDA compiler, none was found" in " ".join(done.stderr.split())


@pytest.mark.parametrize("value", ["ON", "yes", ""])
def test_unknown_switch(tmp_path: Path, value: str) -> None:
    done = configure(tmp_path, f"-DMMBDHS_CUDA={value}")
    assert done.returncode != 0 and f"MMBDHS_CUDA must be auto, on or off, got '{value}'" in done.stderr


@pytest.mark.slow
def test_arm(tmp_path: Path) -> None:
    """The CPU attention compiles for NEON, and is right under an emulator."""
    compiler = shutil.which("aarch64-linux-gnu-g++") or lacking("aarch64", "aarch64-linux-gnu-g++")
    program, sources = tmp_path / "check", (ROOT / "csrc/attention/cpu").glob("*.cpp")
    options = ("-std=c++17", "-O3", "-ffp-contract=fast", "-static", "-fopenmp", "-DMMBDHS_ISA=base", f"-I{ROOT}/csrc")
    command = [compiler, *options, ROOT / "tests/helpers/emulator/attention_check.cpp", *sources, "-o", program]
    subprocess.run(command, check=True)
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static") or lacking("aarch64", "qemu-aarch64")
    subprocess.run([emulator, program], check=True)
